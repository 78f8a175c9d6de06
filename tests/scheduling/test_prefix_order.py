"""Longest prefix first: cached prefixes are used before they are evicted; no request starves."""

from __future__ import annotations

import pytest
from engine.fakes import make_engine, oracle, run, tiny_spec

from minserve.bench.workloads.traffic import fixed_length
from minserve.config import ConfigError, EngineConfig, resolve

PAGE = 4
LONG = 40


def engine_with(order: str, num_blocks: int, **scheduling: object):
    values = {
        "memory.block_size": PAGE,
        "memory.prefix_cache": "radix",
        "memory.check_integrity": True,
        "scheduling.max_num_seqs": 1,
        "scheduling.order": order,
        **{f"scheduling.{name}": value for name, value in scheduling.items()},
    }
    return make_engine(EngineConfig().with_values(values), num_blocks)[0]


def prompt(group: int, question: int) -> list[int]:
    """Forty tokens that a group shares, and four of its own."""
    return [1 + (group * 31 + at) % 90 for at in range(LONG)] + [91 + group % 4, question, 5, 6]


def serve(order: str, num_blocks: int = 14, **scheduling: object):
    """Three groups take turns at the door; the pool holds one group's prefix."""
    engine = engine_with(order, num_blocks, **scheduling)
    jobs = [(group, question) for question in range(1, 5) for group in range(3)]
    added = [engine.add(f"{g}/{q}", prompt(g, q), fixed_length(3))[0] for g, q in jobs]
    run(engine)
    for (group, question), request in zip(jobs, added, strict=True):
        assert request.output_token_ids == oracle(prompt(group, question), 3, True)
    return engine


def test_a_pool_for_one_prefix_serves_three_groups_one_after_the_other():
    in_turn, grouped = serve("fcfs"), serve("lpm")
    assert in_turn.trace.totals.hit_tokens < 3 * PAGE
    # Each group computes its prefix once, for its first question; three others find it.
    assert grouped.trace.totals.hit_tokens >= 3 * 3 * LONG
    order = [record.request_id for record in grouped.trace.requests]
    assert order == [f"{group}/{question}" for group in range(3) for question in range(1, 5)]


def test_with_room_for_every_prefix_the_order_gains_nothing():
    assert serve("lpm", 60).trace.totals.hit_tokens == serve("fcfs", 60).trace.totals.hit_tokens > 0


def test_a_request_without_a_cached_prefix_is_overtaken_only_until_the_limit():
    def place_of_the_uncached_request(limit_s: float | None) -> int:
        engine = engine_with("lpm", 14, starvation_limit_s=limit_s)
        engine.add("0/0", prompt(0, 1), fixed_length(3))
        run(engine)
        engine.add("uncached", [77] * 12, fixed_length(3))
        for question in range(2, 22):
            engine.add(f"0/{question}", prompt(0, question), fixed_length(3))
        run(engine)
        return [record.request_id for record in engine.trace.requests].index("uncached")

    assert place_of_the_uncached_request(1000.0) == 21
    assert 1 < place_of_the_uncached_request(0.03) < 21
    assert place_of_the_uncached_request(0.0) == 1


def test_the_order_needs_a_prefix_cache():
    config = EngineConfig().with_values({"scheduling.order": "lpm"})
    with pytest.raises(ConfigError, match=r"memory\.prefix_cache='off' caches none"):
        resolve(config, tiny_spec(), "cpu")
