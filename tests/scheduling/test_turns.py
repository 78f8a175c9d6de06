"""What a step computes first: prompts, new tokens, or both as they come."""

from __future__ import annotations

import itertools

import pytest
from engine.fakes import make_engine, oracle

from minserve.bench.workloads.traffic import fixed_length
from minserve.config import EngineConfig

LONG = 100


def serve(num_long=1, max_num_seqs=8, **scheduling):
    """Three requests write; then long prompts arrive. Steps, as (prompt tokens, new tokens)."""
    config = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": max_num_seqs,
            "scheduling.max_num_batched_tokens": 20,
            **{f"scheduling.{name}": value for name, value in scheduling.items()},
        }
    )
    engine, _, _ = make_engine(config, num_blocks=64)
    requests = [engine.add(f"chat {n}", [n + 1] * 6, fixed_length(25))[0] for n in range(3)]
    engine.step()
    engine.step()
    for number in range(num_long):
        requests += engine.add(f"long {number}", [50 + number] * LONG, fixed_length(4))
    while engine.has_work:
        engine.step()
    for request in requests:
        count = request.num_output_tokens
        assert request.output_token_ids == oracle(request.prompt_token_ids, count, ignore_eos=True)
    return [(step.num_prefill_tokens, step.num_decode_tokens) for step in engine.trace.steps[2:]]


def longest_pause(steps):
    """Successive steps in which no request decodes."""
    pauses = [
        len(list(run)) for wrote, run in itertools.groupby(steps, lambda s: s[1] > 0) if not wrote
    ]
    return max(pauses, default=0)


def test_decodes_first_fills_what_they_leave_with_the_prompt():
    steps = serve(prefill="decode_first")
    assert steps[:6] == [(17, 3)] * 5 + [(15, 3)]
    assert longest_pause(steps) == 0


def test_prompts_first_makes_decoding_requests_wait():
    steps = serve(prefill="prefill_first")
    assert steps[:6] == [(20, 0)] * 5 + [(0, 4)]
    assert all(0 in step for step in steps)


def test_prompts_first_cannot_starve_decoding_requests_because_places_run_out():
    """Only decoding requests free places: at most five prompts of five steps each."""
    steps = serve(num_long=30, prefill="prefill_first")
    assert longest_pause(steps) == 5 * LONG // 20


@pytest.mark.parametrize("prefill", ["mixed", "decode_first", "prefill_first"])
def test_a_cap_on_prompt_tokens_holds_in_every_step_for_all_prompts_together(prefill):
    steps = serve(num_long=4, prefill=prefill, max_num_prefill_tokens=7)
    assert max(prompt for prompt, _ in steps) == 7
    # Two steps went before, in which the three short prompts of six tokens got 7 each.
    assert sum(prompt for prompt, _ in steps) == 4 * LONG + 3 * 6 - 2 * 7
    if prefill != "prefill_first":  # as long as there is anybody to write
        assert longest_pause(steps[:20]) == 0


@pytest.mark.parametrize(
    ("prefill", "expected"),
    [
        ("mixed", [(5, 3)] * 4),
        ("decode_first", [(5, 3)] * 4),
        ("prefill_first", [(8, 0)] * 4),
    ],
)
def test_a_prompt_of_good_rank_gets_the_tokens_that_decoding_requests_leave(prefill, expected):
    """With priorities, the rows of running requests are set aside, whatever their rank; only where
    prompts are to be computed alone do they wait."""
    config = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": 8,
            "scheduling.max_num_batched_tokens": 8,
            "scheduling.order": "priority",
            "scheduling.prefill": prefill,
        }
    )
    engine, _, _ = make_engine(config, num_blocks=64)
    for number in range(3):
        engine.add(f"chat {number}", [number + 1] * 2, fixed_length(25), priority=5)
    engine.step()
    engine.step()
    engine.add("urgent", [50] * LONG, fixed_length(4), priority=0)
    for _ in range(4):
        engine.step()
    steps = [(step.num_prefill_tokens, step.num_decode_tokens) for step in engine.trace.steps]
    assert steps[2:] == expected
