"""Proposed tokens change how many tokens a step gives, and never which.

Scripted proposers (right, half right, wrong; chains and trees) beside every other switch, token for
token in float64, and their acceptance counted again by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding.scripted import KINDS, Scripted, confirmed, sometimes
from lossless.test_matrix import (  # noqa: F401  model_dir and expected are fixtures
    NEW_TOKENS,
    complete,
    expected,
    label,
    model_dir,
    pairs,
    prompts,
    run,
    singles,
)

from minserve.build import build_engine
from minserve.config import EngineConfig
from minserve.draft import Draft
from minserve.engine.parts import EngineParts
from minserve.loading import load_model
from minserve.request import Request, SamplingParams
from minserve.trace import RunTotals

VOCAB = 101
UNCACHED = ("memory.kv_cache", False)
SINGLES = [switches for switches in singles() if UNCACHED not in switches]
PAIRS = [switches for switches in pairs() if UNCACHED not in switches]
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0},
    "penalties": {
        "temperature": 0.7,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
    },
    "biases and bans": {"temperature": 0.8, "logit_bias": {7: 3.0, 9: -2.0}, "min_tokens": 3},
    "logprobs": {"temperature": 1.0, "logprobs": 3, "top_k": 40},
    "stop tokens": {"temperature": 1.0, "stop_token_ids": list(range(0, 101, 9))},
    "stop tokens, later": {
        "temperature": 1.0,
        "stop_token_ids": list(range(0, 101, 5)),
        "min_tokens": 3,
    },
    "allowed tokens": {"temperature": 1.0, "allowed_token_ids": list(range(3, 60))},
}
Tokens = list[list[int]]


def speculate(
    model_dir: Path,  # noqa: F811
    values: Mapping[str, Any],
    kind: str,
    answers: list[Request],
    **how: Any,
) -> tuple[list[Request], RunTotals, Scripted]:
    """All requests through an engine whose proposer knows the answers."""
    known = {(one.request_id, one.sample_index): one.output_token_ids for one in answers}
    proposer = KINDS[kind](known, VOCAB)
    requests, totals = run(model_dir, values, parts=EngineParts(proposer=proposer), **how)
    assert sum(totals.speculation.proposed_tokens) > 0
    return requests, totals, proposer


def tokens_of(requests: list[Request]) -> Tokens:
    return [request.output_token_ids for request in requests]


@pytest.fixture(scope="module")
def answers(model_dir: Path, expected: Tokens) -> list[Request]:  # noqa: F811
    requests, _ = run(model_dir, {})
    assert tokens_of(requests) == expected
    return requests


HARD = ("half", "half tree")
"""Some tokens accepted and some not: what pairs of switches are tried with."""


@pytest.mark.parametrize(
    ("switches", "kind"),
    [
        *itertools.product(SINGLES, KINDS),
        *(pytest.param(*p, marks=pytest.mark.sampled(40)) for p in itertools.product(PAIRS, HARD)),
    ],
    ids=lambda value: value if isinstance(value, str) else label(value),
)
def test_drafts_change_no_token(switches, kind, model_dir, answers):  # noqa: F811
    requests, totals, _ = speculate(model_dir, dict(switches), kind, answers)
    assert tokens_of(requests) == tokens_of(answers)
    accepted = sum(totals.speculation.accepted_tokens)
    assert accepted == sum(request.num_accepted_tokens for request in requests)
    assert (accepted == 0) == (kind == "wrong")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("switches", SINGLES, ids=label)
def test_aborts_beside_drafts_change_no_token(switches, kind, model_dir, answers):  # noqa: F811
    requests, _, _ = speculate(model_dir, dict(switches), kind, answers, aborts=True)
    for request, answer in zip(requests, tokens_of(answers), strict=True):
        assert request.output_token_ids == answer[: request.num_output_tokens]
        assert request.finish_reason == "abort" or request.output_token_ids == answer


TIGHT = {"memory.kv_bytes": "tiny", "memory.block_size": 7}
HOW: dict[str, dict[str, Any]] = {
    "alone": {},
    "preempted": TIGHT,
    "swapped": TIGHT | {"scheduling.preemption": "swap"},
    "radix, overlapped": {"memory.prefix_cache": "radix", "scheduling.async_scheduling": True},
    "graphs": {"kernels.cuda_graphs": True},
    "padded": {"kernels.padding": "longest"},
}


@pytest.fixture(scope="module")
def plain(model_dir: Path) -> dict[str, list[Request]]:  # noqa: F811
    """Each kind of parameters, three samples a prompt, without drafts."""
    return {name: run(model_dir, {}, samples=3, **_split(name))[0] for name in PARAMS}


def _split(name: str) -> dict[str, Any]:
    params = dict(PARAMS[name])
    return {"temperature": params.pop("temperature", 0.0), "params": params}


@pytest.mark.parametrize("kind", ["right", "half", "half tree"])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", PARAMS)
def test_every_parameter_means_the_same_on_proposed_rows(
    name, how, kind, model_dir, plain  # noqa: F811
):  # fmt: skip
    requests, _, _ = speculate(model_dir, HOW[how], kind, plain[name], samples=3, **_split(name))
    for request, answer in zip(requests, plain[name], strict=True):
        assert request.output_token_ids == answer.output_token_ids
        assert (request.finish_reason, request.stop_reason) == (
            answer.finish_reason,
            answer.stop_reason,
        )
        assert len(request.logprobs) == len(answer.logprobs)
        for mine, other in zip(request.logprobs, answer.logprobs, strict=True):
            assert (mine.token_id, mine.rank) == (other.token_id, other.rank)
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-9)
            assert [token for token, _ in mine.top] == [token for token, _ in other.top]


@pytest.mark.parametrize("kind", KINDS)
def test_acceptance_is_counted_exactly(kind, model_dir, answers):  # noqa: F811
    requests, totals, proposer = speculate(model_dir, {}, kind, answers, formed=False)
    by_name = dict(zip(requests, tokens_of(answers)[:-1], strict=True))
    drafts, proposed, accepted = 0, [0] * 8, [0] * 8
    for request, place, whole in proposer.given:
        room = NEW_TOKENS[int(request.request_id)] - place - 1
        draft = whole.within(room, room + (not whole.is_chain))
        if not len(draft):
            continue
        drafts += 1
        for depth in draft.depths:
            proposed[depth - 1] += 1
        for depth in range(confirmed(draft, by_name[request][place:])):
            accepted[depth] += 1
    found = totals.speculation
    assert found.num_drafts == drafts
    for counted, by_hand in (
        (found.proposed_tokens, proposed),
        (found.accepted_tokens, accepted),
    ):
        assert [*counted, *[0] * 8][:8] == by_hand
    assert sum(proposed) == sum(request.num_proposed_tokens for request in requests)
    # A step gives the model's own token, and the accepted ones before it.
    assert totals.sampled_tokens == sum(NEW_TOKENS)
    assert totals.decode_tokens == drafts + sum(proposed) + (
        sum(NEW_TOKENS) - len(NEW_TOKENS) - drafts - sum(accepted)
    )
    assert found.acceptance_rate == sum(accepted) / sum(proposed)
    assert found.mean_accepted_length == 1 + sum(accepted) / drafts


def test_right_drafts_of_four_give_five_tokens_a_step(model_dir, answers):  # noqa: F811
    plain_requests, plain_totals = run(model_dir, {})
    _, totals, _ = speculate(model_dir, {}, "right", answers)
    assert totals.speculation.acceptance_rate == 1.0
    assert totals.steps < plain_totals.steps / 3
    assert plain_requests[0].metrics().acceptance_rate is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", ["hash", "radix"])
@pytest.mark.parametrize("block_size", [1, 7])
def test_cached_pages_hold_the_keys_of_accepted_tokens_only(
    block_size, index, kind, model_dir, answers  # noqa: F811
):  # fmt: skip
    """Each conversation goes on from pages that a draft was verified in."""
    known = {(one.request_id, one.sample_index): one.output_token_ids for one in answers}
    next_turns = {one.request_id: [*one.token_ids, 5] for one in answers if one.num_tokens < 80}
    params = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True, logprobs=0)
    found = []
    for proposer, values in (
        (None, {}),
        (
            KINDS[kind](known, VOCAB),
            {"memory.prefix_cache": index, "memory.block_size": block_size},
        ),
    ):
        loaded = load_model(model_dir, EngineConfig().with_values(complete(values)))
        engine = build_engine(loaded, parts=EngineParts(proposer=proposer))
        if proposer is not None:
            for one in answers:
                engine.add(one.request_id, one.prompt_token_ids, one.params)
            while engine.has_work:
                engine.step()
            proposer.answers = {(name, 0): () for name in next_turns}
        turns = [engine.add(name, tokens, params)[0] for name, tokens in next_turns.items()]
        while engine.has_work:
            engine.step()
        found.append(turns)
    plain_turns, turns = found
    assert tokens_of(turns) == tokens_of(plain_turns)
    for mine, other in zip(turns, plain_turns, strict=True):
        # Every full page but that of the token drawn last, which was never computed.
        assert mine.num_cached_tokens == (mine.num_prompt_tokens - 2) // block_size * block_size
        for entry, expected_entry in zip(mine.logprobs, other.logprobs, strict=True):
            assert entry.logprob == pytest.approx(expected_entry.logprob, abs=1e-9)


class Watching(Scripted):
    """Keeps the hidden states of each request's tokens. Every third step has no drafts, so that it
    can be a captured one."""

    needs_hidden = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.states: dict[str, list[torch.Tensor]] = {}
        self.times = 0

    def propose(self, requests: Sequence[Request]) -> list[Draft | None]:
        self.times += 1
        return super().propose(requests) if self.times % 3 else [None] * len(requests)

    def observe(self, request: Request, hidden: torch.Tensor) -> None:
        self.states.setdefault(request.request_id, []).append(hidden)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kernels.cuda_graphs": True},
        {"kernels.backend": "torch"},
        {"kernels.padding": "longest"},
        {"scheduling.async_scheduling": True},
        TIGHT,
        # A prompt, a token at a time, before the requests whose tokens are drawn.
        {
            "kernels.cuda_graphs": True,
            "scheduling.order": "priority",
            "scheduling.max_num_prefill_tokens": 1,
        },
    ],
    ids=str,
)
def test_a_hidden_state_is_what_its_token_was_drawn_from(values, model_dir, answers):  # noqa: F811
    known = {(one.request_id, one.sample_index): one.output_token_ids for one in answers}
    proposer = Watching(known, VOCAB, 4, sometimes)
    loaded = load_model(model_dir, EngineConfig().with_values(complete(values)))
    engine = build_engine(loaded, parts=EngineParts(proposer=proposer))
    for index, (prompt, count) in enumerate(zip(prompts(), NEW_TOKENS, strict=True)):
        params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
        engine.add(str(index), prompt, params, priority=-index)
        engine.step()
    while engine.has_work:
        engine.step()
    decoder = engine._runner._decoder
    for answer in answers[: len(NEW_TOKENS)]:  # the last one's draws are masked
        states = torch.cat(proposer.states[answer.request_id])
        with torch.inference_mode():
            drawn = decoder.head(states).argmax(dim=-1).tolist()
        assert drawn == answer.output_token_ids
