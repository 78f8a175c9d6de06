"""The rules of decoding: what a proposer of tokens needs."""

from __future__ import annotations

from minserve.config.knobs import ConfigError
from minserve.config.question import Answer, Question, Rule


def drafts_need_cache(question: Question) -> None:
    """Refuse a proposer if nothing is cached."""
    proposer = question.facts.proposer
    if proposer is not None and not question.config.memory.kv_cache:
        raise ConfigError(
            f"EngineParts(proposer={proposer}) drafts tokens after the one token that a request "
            "has left to compute, and with memory.kv_cache=False every token is left: turn the "
            "cache on, or pass no proposer"
        )


def drafts_need_a_model(question: Question) -> None:
    """Refuse a proposer on modelled time."""
    proposer = question.facts.proposer
    if proposer is not None and question.facts.modelled:
        raise ConfigError(
            f"EngineParts(proposer={proposer}) drafts tokens for the model to confirm, and an "
            "engine on modelled time computes none: pass no proposer"
        )


def trees_need_distances(question: Question) -> None:
    """Refuse a proposer of trees for a model with sliding windows."""
    facts = question.facts
    windows = [each.mixer.cache.window for each in question.model.layers if each.mixer.cache.window]
    if facts.proposes_trees and windows:
        raise ConfigError(
            f"EngineParts(proposer={facts.proposer}) proposes trees, and this model has layers "
            f"with a sliding window of {windows[0]} tokens, which would count the tokens of other "
            "branches: propose chains (proposes_trees=False)"
        )


def drafts_wait_for_tokens(question: Question) -> Answer | None:
    """Say how far steps overlap with a proposer."""
    facts = question.facts
    if facts.proposer is None or not question.config.scheduling.async_scheduling:
        return None
    return Answer(
        notes=(
            "scheduling.async_scheduling overlaps only steps that draw no token, such as chunks of "
            f"a prompt, because {facts.proposer} continues tokens that are known",
        )
    )


RULES: tuple[Rule, ...] = (
    drafts_need_cache,
    drafts_need_a_model,
    trees_need_distances,
    drafts_wait_for_tokens,
)
