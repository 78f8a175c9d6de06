"""Pages of several cache groups, counted by hand: admissions, host slots, and pools."""

from __future__ import annotations

import pytest
from engine.fakes import TOKEN_BYTES, make_engine, oracle, run, tiny_spec

from minserve.config import EngineConfig, resolve
from minserve.memory import TokenBlocks, plan_blocks, root_key
from minserve.request import SamplingParams

PAGE = 4
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
VALUES = {
    "device": "cpu",
    "memory.block_size": PAGE,
    "memory.watermark": 0.0,
    "memory.check_integrity": True,
    "scheduling.max_num_seqs": 3,
    "scheduling.max_num_batched_tokens": 16,
}


def config(**values: object) -> EngineConfig:
    names = {name.replace("__", "."): value for name, value in values.items()}
    return EngineConfig().with_values(VALUES | names)


@pytest.mark.parametrize("windows", [(None,), (None, 6)])
def test_pages_that_a_running_request_holds_are_not_needed_again(windows):
    engine = make_engine(config(memory__prefix_cache="hash"), 16, windows=windows)[0]
    prompt = list(range(2, 34))
    engine.add("first", prompt, GREEDY)
    for _ in range(3):
        engine.step()
    (second,) = engine.add("second", [*prompt, 1], GREEDY)
    memory = engine.memory
    found = memory.find(second)
    assert found.num_tokens == 32
    assert memory.needed_blocks(second) == 1  # of 9, of which the first request holds 8
    engine.abort("first")
    assert memory.needed_blocks(second) == 9
    run(engine)
    assert second.num_cached_tokens == 32


def test_planned_tokens_of_two_steps_have_room_beside_a_window():
    """Two chunks of 16 tokens may be in flight with overlap: in a window of 6 with pages of 4, a
    request holds at most 2 + 2 pages around them."""
    most = []
    for overlap in (False, True):
        resolved = resolve(config(scheduling__async_scheduling=overlap), tiny_spec(128, (None, 6)))
        most.append([plan.most_blocks for plan in plan_blocks(resolved, 500)])
        shares = [plan.num_blocks for plan in plan_blocks(resolved, 500)]
        assert shares == [500, 3 * (2 + 2) + (8 if overlap else 4)]
    assert most == [[32, 2 + 2 + 4], [32, 2 + 2 + 8]]


def test_host_slots_below_several_groups_are_for_preempted_requests_only():
    """Evicted pages would not be found there."""
    engine = make_engine(
        config(
            memory__prefix_cache="hash",
            memory__host_bytes=2 * 40 * PAGE * TOKEN_BYTES,
            scheduling__preemption="swap",
        ),
        12,
        windows=(None, 6),
    )[0]
    for number in range(8):
        engine.add(str(number), [number + 1] * 30, GREEDY)
    run(engine)
    totals = engine.trace.totals
    assert totals.evicted_blocks > 0 and not totals.loaded_tokens
    assert all(group.host.num_cached == 0 for group in engine.memory.groups)


def test_a_request_whose_window_has_no_room_waits_with_its_computed_tokens():
    """The window's pool is for one request here: 6 pages of its window, 2 around it, 4 for a
    chunk. Both groups must have room before a request that brings pages is admitted."""
    windows = (None, 24)
    source = make_engine(config(), 40, windows=windows)[0]
    target = make_engine(config(), 40, windows=windows, scarce=True)[0]
    (busy,) = target.add("busy", [3] * 40, GREEDY)
    while busy.num_output_tokens < 2:
        target.step()
    source.add("r", [5] * 30, GREEDY)
    for _ in range(3):
        source.step()
    (request,) = target.import_request(source.export_request("r"))
    assert target.memory.pool.num_available > target.memory.needed_blocks(request)
    assert not target.memory.fits(request)
    target.step()
    assert request.num_computed_tokens >= 30 and request not in target._scheduler.running
    run(target)
    assert request.output_token_ids == oracle([5] * 30, 8, True)
    assert not target.trace.totals.recomputed_tokens


def test_what_one_window_lacks_shortens_the_prefix_for_one_that_was_asked_before():
    """Without page 13 the short window ends the prefix after 13 pages, which the long window, asked
    first, could not serve: it lacks page 8. It could serve 14 pages, which it reads from 9 on."""
    engine = make_engine(config(memory__prefix_cache="hash"), 40, windows=(None, 20, 6))[0]
    prompt = [7 * at % 90 for at in range(60)]
    engine.add("first", prompt, GREEDY)
    run(engine)
    keys = TokenBlocks(root_key(()), prompt, PAGE)
    for number, page in ((1, 8), (2, 13)):
        pool = engine.memory.groups[number].pool
        gone = engine.memory.groups[number]._find(keys, page)
        pool._cached.move_to_end(gone, last=False)
        pool._evict(1)
    (request,) = engine.add("again", prompt, GREEDY)
    run(engine)
    assert request.num_cached_tokens == 8 * PAGE
    assert request.output_token_ids == oracle(prompt, 8, True)


def test_a_request_is_swapped_out_in_every_group_or_in_none():
    """Many short requests wait at once under a preemptive order, and the window's slots are fewer:
    who finds none gives back those of the other group, and computes its tokens again."""
    engine = make_engine(
        config(
            memory__host_bytes=2 * 200 * PAGE * TOKEN_BYTES,
            scheduling__preemption="swap",
            scheduling__order="priority",
            scheduling__max_num_seqs=2,
        ),
        200,
        windows=(None, 6),
    )[0]
    requests = []
    for number in range(40):
        requests += engine.add(str(number), [number + 1] * 9, GREEDY, priority=-number)
        engine.step()
        engine.audit()
    run(engine)
    totals = engine.trace.totals
    assert totals.swapped_out_blocks == totals.swapped_in_blocks > 0 < totals.recomputed_tokens
    assert all(group.host.num_owned == 0 for group in engine.memory.groups)
    for number, request in enumerate(requests):
        assert request.output_token_ids == oracle([number + 1] * 9, 8, True)
