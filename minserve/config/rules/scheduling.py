"""The rules of scheduling: lengths, the token budget, orders, and limits on waiting."""

from __future__ import annotations

from dataclasses import replace

from minserve.config.engine import EngineConfig
from minserve.config.knobs import ConfigError
from minserve.config.question import Answer, OrderTraits, Question, Rule

NAMED_ORDERS: dict[str, OrderTraits] = {
    traits.name: traits
    for traits in (
        OrderTraits("fcfs", overtakes=False),
        OrderTraits("sjf", needs_lengths=True),
        OrderTraits("lpm", needs_prefixes=True),
        OrderTraits("priority", preemptive=True),
        OrderTraits("mlfq", preemptive=True),
    )
}
"""`scheduling.order` -> what rules must know of it."""


def _order_of(question: Question) -> OrderTraits:
    """The order of the queue: the caller's own, or the one that the configuration names."""
    if question.facts.own_order is not None:
        return question.facts.own_order
    name = question.config.scheduling.order
    return replace(NAMED_ORDERS[name], name=f"scheduling.order={name!r}")


def predictor_is_asked(question: Question) -> None:
    """Refuse a predictor that the order of the queue never asks."""
    order = _order_of(question)
    if question.facts.own_predictor and not order.needs_lengths:
        raise ConfigError(
            f"{order.name} asks no predictor: use scheduling.order='sjf', or give no predictor"
        )


def lengths_suit_model(question: Question) -> Answer:
    """Fill in the longest request; refuse one that is longer than the model's positions."""
    model = question.model
    max_model_len = question.config.scheduling.max_model_len or model.max_position
    if max_model_len > model.max_position:
        raise ConfigError(
            f"scheduling.max_model_len={max_model_len} is beyond the {model.max_position} "
            "positions the model was made for: lower it, or give the model a rope scaling in its "
            "config.json"
        )
    return Answer({"scheduling.max_model_len": max_model_len})


def budget_by_default(question: Question) -> Answer | None:
    """Fill in the token budget of a step."""
    scheduling = question.config.scheduling
    if scheduling.max_num_batched_tokens is not None:
        return None
    budget = max(512, scheduling.max_num_seqs)
    notes: tuple[str, ...] = ()
    if _whole_prompts(question.config) and budget < question.max_model_len:
        budget = question.max_model_len
        notes = (
            f"scheduling.max_num_batched_tokens: {budget}, so that a request of max_model_len "
            "fits in one step",
        )
    return Answer({"scheduling.max_num_batched_tokens": budget}, notes)


def budget_serves_all_running(question: Question) -> None:
    """Refuse a budget of less than one token per running request."""
    budget, max_num_seqs = question.max_num_batched_tokens, question.config.scheduling.max_num_seqs
    if budget < max_num_seqs:
        raise ConfigError(
            f"scheduling.max_num_batched_tokens={budget} is below scheduling.max_num_seqs="
            f"{max_num_seqs}: each running request needs a token of the budget; raise "
            "the one or lower the other"
        )


def budget_holds_whole_requests(question: Question) -> None:
    """Refuse a budget too small for the longest request if requests cannot be split."""
    budget, longest = question.max_num_batched_tokens, question.max_model_len
    if _whole_prompts(question.config) and budget < longest:
        cached = question.config.memory.kv_cache
        switch = "scheduling.enable_chunked_prefill=False" if cached else "memory.kv_cache=False"
        raise ConfigError(
            f"{switch} needs a request's tokens in one step, but scheduling."
            f"max_num_batched_tokens={budget} is below scheduling.max_model_len={longest}: raise "
            "the budget or lower max_model_len"
        )


def static_batches_run_to_their_end(question: Question) -> None:
    """Refuse preemptive orders with static batches."""
    scheduling = question.config.scheduling
    order = _order_of(question)
    if scheduling.policy == "static" and order.preemptive:
        raise ConfigError(
            f"{order.name} takes places from running requests, and with "
            "scheduling.policy='static' a batch runs to its end: use scheduling.order='sjf', 'lpm' "
            "or 'fcfs', or policy='continuous'"
        )


def longest_prefix_needs_cache(question: Question) -> None:
    """Refuse an order by cached prefixes where no prefix is ever cached."""
    order = _order_of(question)
    if order.needs_prefixes and question.config.memory.prefix_cache == "off":
        raise ConfigError(
            f"{order.name} puts the longest cached prefix first, and memory.prefix_cache='off' "
            "caches none: use prefix_cache='hash' or 'radix', or order='fcfs'"
        )


def predicted_lengths_need_sjf(question: Question) -> None:
    """Refuse settings of predicted lengths where the order asks for none."""
    scheduling, order = question.config.scheduling, _order_of(question)
    if order.needs_lengths:
        return
    for name in ("length_error", "length_bucket"):
        if getattr(scheduling, name):
            raise ConfigError(
                f"scheduling.{name}={getattr(scheduling, name)} is about predicted lengths, and "
                f"{order.name} asks for none: use order='sjf', or leave "
                f"{name} at its default"
            )


def prefill_cap_splits_prompts(question: Question) -> None:
    """Refuse a limit on prompt tokens if prompts cannot be split."""
    most = question.config.scheduling.max_num_prefill_tokens
    if most is not None and _whole_prompts(question.config):
        raise ConfigError(
            f"scheduling.max_num_prefill_tokens={most} splits prompts, which memory."
            "kv_cache=False and scheduling.enable_chunked_prefill=False do not allow: leave it at "
            "None, or switch both on"
        )


def prefill_cap_within_budget(question: Question) -> None:
    """Refuse a limit on prompt tokens that is above the budget of a whole step."""
    most, budget = (
        question.config.scheduling.max_num_prefill_tokens,
        question.max_num_batched_tokens,
    )
    if most is not None and most > budget:
        raise ConfigError(
            f"scheduling.max_num_prefill_tokens={most} is above scheduling."
            f"max_num_batched_tokens={budget}, the budget of a whole step: lower the one or raise "
            "the other"
        )


def starvation_limit_by_default(question: Question) -> Answer | None:
    """Fill in the limit where the order lets requests overtake."""
    order = _order_of(question)
    if question.config.scheduling.starvation_limit_s is not None or not order.overtakes:
        return None
    note = f"scheduling.starvation_limit_s: 30, because {order.name} lets requests overtake"
    return Answer({"scheduling.starvation_limit_s": 30.0}, (note,))


def overlap_needs_cache(question: Question) -> None:
    """Refuse overlapped steps if nothing is cached between steps."""
    config = question.config
    if config.scheduling.async_scheduling and not config.memory.kv_cache:
        raise ConfigError(
            "scheduling.async_scheduling=True plans a step on what the last one leaves in the "
            "cache, and memory.kv_cache=False keeps nothing there: turn the cache on, or use "
            "async_scheduling=False"
        )


def swap_needs_host_memory(question: Question) -> None:
    """Refuse swapping without host memory."""
    config = question.config
    if config.scheduling.preemption == "swap" and not config.memory.host_bytes:
        raise ConfigError(
            "scheduling.preemption='swap' saves pages to the host, and memory.host_bytes=0 gives "
            "them no room: set memory.host_bytes, or use preemption='recompute'"
        )


def swap_needs_blocks(question: Question) -> None:
    """Refuse swapping if requests have no pages that can be moved one by one."""
    memory = question.config.memory
    paged = memory.kv_cache and memory.layout == "paged"
    if question.config.scheduling.preemption == "swap" and not paged:
        raise ConfigError(
            "scheduling.preemption='swap' moves pages of the paged KV cache, and here memory."
            f"layout={memory.layout!r}, memory.kv_cache={memory.kv_cache}: use "
            "preemption='recompute'"
        )


def _whole_prompts(config: EngineConfig) -> bool:
    """Must all tokens of a request be computed in one step?"""
    return not config.memory.kv_cache or not config.scheduling.enable_chunked_prefill


RULES: tuple[Rule, ...] = (
    predictor_is_asked,
    lengths_suit_model,
    budget_by_default,
    budget_serves_all_running,
    budget_holds_whole_requests,
    static_batches_run_to_their_end,
    longest_prefix_needs_cache,
    predicted_lengths_need_sjf,
    prefill_cap_splits_prompts,
    prefill_cap_within_budget,
    starvation_limit_by_default,
    overlap_needs_cache,
    swap_needs_host_memory,
    swap_needs_blocks,
)
