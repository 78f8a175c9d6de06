"""Who shares which page, what is copied, and the ways in which other engines got it wrong."""

from __future__ import annotations

import pytest
from engine.fakes import TOKEN_BYTES, full_group, make_engine, oracle, run

from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.memory import IntegrityError, KVManager
from minserve.request import Request, SamplingParams

BLOCK = 4
LONG = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


def engine_with(num_blocks: int = 32, **values: object) -> Engine:
    settings = {
        "memory.block_size": BLOCK,
        "memory.prefix_cache": "radix",
        "memory.check_integrity": True,
        "scheduling.max_num_seqs": 4,
    }
    settings |= {name.replace("__", "."): value for name, value in values.items()}
    return make_engine(EngineConfig().with_values(settings), num_blocks)[0]


def ask(engine: Engine, name: str, prompt: list[int], params: SamplingParams = LONG) -> Request:
    (request,) = engine.add(name, prompt, params)
    run(engine)
    assert params.max_tokens is not None
    assert request.output_token_ids == oracle(prompt, params.max_tokens, params.ignore_eos)
    return request


PROMPT = list(range(1, 19))  # 18 tokens: four pages and a half


@pytest.mark.parametrize(("kind", "found"), [("off", 0), ("hash", 16), ("radix", 17)])
def test_a_second_request_computes_only_what_is_new(kind, found):
    engine = engine_with(memory__prefix_cache=kind)
    ask(engine, "first", PROMPT)
    again = ask(engine, "again", PROMPT)
    # Of 18 tokens one is left to compute, and a hash finds whole pages only.
    assert again.num_cached_tokens == found
    assert engine.trace.totals.hit_tokens == found


@pytest.mark.parametrize("kind", ["hash", "radix"])
@pytest.mark.parametrize("length", [4, 8, 16])
def test_a_full_hit_still_leaves_a_query(kind, length):
    """Bug seen elsewhere: a zero-length query where the whole prompt was cached."""
    engine = engine_with(memory__prefix_cache=kind)
    prompt = PROMPT[:length]
    ask(engine, "first", prompt)
    again = ask(engine, "again", prompt)
    assert 0 < length - again.num_cached_tokens <= (1 if kind == "radix" else BLOCK)


@pytest.mark.parametrize("kind", ["hash", "radix"])
def test_an_evicted_page_is_no_hit_for_its_old_content(kind):
    """Bug seen elsewhere: a stale entry after the page was reused."""
    engine = engine_with(num_blocks=8, memory__prefix_cache=kind)
    ask(engine, "first", PROMPT)
    ask(engine, "other", [50 + i for i in range(20)])
    assert engine.trace.totals.evicted_blocks > 0
    ask(engine, "again", PROMPT)


@pytest.mark.parametrize("kind", ["hash", "radix"])
def test_a_preempted_request_that_hits_its_own_prefix_keeps_its_table(kind):
    """Bug seen elsewhere: the block table overran when a resumed request found itself."""
    engine = engine_with(
        num_blocks=12, memory__prefix_cache=kind, scheduling__max_model_len=40, memory__watermark=0
    )
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    requests = [engine.add(str(i), [i * 7 + j for j in range(1, 14)], params)[0] for i in range(4)]
    run(engine)
    assert engine.trace.totals.preemptions > 0
    assert engine.trace.totals.hit_tokens > 0
    for request in requests:
        assert request.output_token_ids == oracle(request.prompt_token_ids, 20, True)


@pytest.mark.parametrize("kind", ["hash", "radix"])
def test_two_who_compute_the_same_at_once_end_up_on_the_same_pages(kind):
    """Bug seen elsewhere: the duplicate pages were freed while a table still pointed at them."""
    engine = engine_with(memory__prefix_cache=kind)
    a = engine.add("a", PROMPT, LONG)[0]
    b = engine.add("b", PROMPT, LONG)[0]
    engine.step()
    assert engine.memory.blocks_of(a)[:4] == engine.memory.blocks_of(b)[:4]
    assert engine.memory.blocks_of(a)[4] != engine.memory.blocks_of(b)[4]
    assert engine.memory.pool.num_owned == 6
    run(engine)
    assert a.output_token_ids == b.output_token_ids == oracle(PROMPT, 6, True)


@pytest.mark.parametrize("kind", ["hash", "radix"])
def test_hits_on_cached_pages_count_as_pages_taken(kind):
    """Bug seen elsewhere: pages were counted as free before the hits among them were taken."""
    engine = engine_with(num_blocks=8, memory__prefix_cache=kind, memory__watermark=0)
    ask(engine, "first", PROMPT)
    memory = engine.memory
    assert memory.pool.num_available == 8
    (holder,) = engine.add("holder", [60 + i for i in range(10)], LONG)
    engine.step()
    # 3 pages gone; the waiting request shares 4 that nobody owns and needs a fifth.
    (again,) = engine.add("again", PROMPT, LONG)
    assert memory.needed_blocks(again) == 5
    assert memory.pool.num_available == 5
    assert memory.fits(again) and not memory.fits(again, kept_back=1)
    run(engine)
    assert again.output_token_ids == oracle(PROMPT, 6, True)
    assert holder.finished


def test_prompt_logprobs_read_no_hits():
    engine = engine_with()
    ask(engine, "first", PROMPT)
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, prompt_logprobs=0)
    scored = ask(engine, "scored", PROMPT, params)
    assert scored.num_cached_tokens == 0
    assert len(scored.prompt_logprobs) == len(PROMPT)


def test_another_salt_shares_nothing():
    engine = engine_with()
    ask(engine, "first", PROMPT)
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, cache_salt="mine")
    assert ask(engine, "salted", PROMPT, params).num_cached_tokens == 0
    assert ask(engine, "again", PROMPT, params).num_cached_tokens == 17


def test_samples_share_the_prompt_and_copy_the_page_they_write():
    engine = engine_with(memory__prefix_cache="off")
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, n=4)
    requests = engine.add("four", PROMPT, params)
    engine.step()
    assert engine.memory.pool.num_owned == 5
    engine.step()
    tables = [engine.memory.blocks_of(request) for request in requests]
    assert len({table[:4] for table in tables}) == 1
    assert len({table[4] for table in tables}) == 4
    assert engine.memory.pool.num_owned == 8
    assert engine.trace.totals.copied_blocks == 3
    assert engine.trace.totals.prefill_tokens == len(PROMPT) + 3
    run(engine)
    assert {tuple(r.output_token_ids) for r in requests} == {tuple(oracle(PROMPT, 6, True))}


def test_the_next_sample_leads_when_the_first_is_gone_before_its_prompt_was_computed():
    engine = engine_with(memory__prefix_cache="off", scheduling__max_num_batched_tokens=8)
    requests = engine.add("three", PROMPT, SamplingParams(max_tokens=6, temperature=0.0, n=3))
    engine.step()
    engine._requests.finish(requests[0], "abort")
    run(engine)
    for request in requests[1:]:
        assert request.output_token_ids == oracle(PROMPT, 6)
    assert engine.trace.totals.copied_blocks == 1


def test_shared_memory_is_counted_once():
    engine = engine_with(memory__prefix_cache="off")
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True, n=4)
    engine.add("four", PROMPT, params)
    engine.step()
    step = engine.step()
    pages = step.blocks
    assert step.kv_tokens == 16 + 3 * 2 + 3  # the leader is a token ahead
    assert pages.owned_bytes == step.kv_bytes_used + pages.future_bytes + pages.internal_bytes


def test_pinned_pages_are_not_evicted_until_unpinned():
    engine = engine_with(num_blocks=10)
    ask(engine, "first", PROMPT)
    handle, tokens = engine.memory.pins.add(PROMPT)
    assert tokens == 16
    ask(engine, "other", [50 + i for i in range(17)])
    assert ask(engine, "again", PROMPT[:17]).num_cached_tokens == 16
    engine.memory.pins.remove(handle)
    engine.memory.check()
    with pytest.raises(KeyError):
        engine.memory.pins.remove(handle)
    assert engine.memory.pool.num_owned == 0


def test_pinning_without_a_prefix_cache_is_refused():
    with pytest.raises(ValueError, match="it is off"):
        KVManager(full_group(8), 4, 2, 8).pins.add([1, 2, 3, 4])


def tiered(slots: int, disk: int = 0, **values: object) -> Engine:
    return engine_with(
        num_blocks=8,
        memory__host_bytes=slots * BLOCK * TOKEN_BYTES,
        memory__disk_bytes=disk,
        memory__resume="load",
        **values,
    )


def conversations(engine: Engine, count: int, rounds: int) -> list[Request]:
    """Sessions that take turns, each prompt the history so far and a few tokens more."""
    histories = [[10 * i + j for j in range(1, 10)] for i in range(count)]
    requests = []
    for turn in range(rounds):
        for i, history in enumerate(histories):
            request = ask(engine, f"{i}.{turn}", history)
            history += [*request.output_token_ids, 90 + turn]
            requests.append(request)
    return requests


@pytest.mark.parametrize("disk", [0, 1 << 20])
def test_idle_sessions_come_back_from_the_tiers(disk, tmp_path):
    engine = tiered(4 if disk else 64, disk, memory__disk_path=str(tmp_path))
    requests = conversations(engine, count=6, rounds=3)
    returning = requests[6:]
    assert all(r.num_cached_tokens >= r.num_prompt_tokens - BLOCK - 1 for r in returning)
    assert engine.trace.totals.loaded_tokens > 0
    engine.close()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_page_on_disk_is_computed_again(tmp_path):
    engine = tiered(2, 1 << 20, memory__disk_path=str(tmp_path))
    conversations(engine, count=6, rounds=1)
    for file in tmp_path.glob("*/*"):
        file.write_bytes(b"not what was written")
    conversations_again = conversations(engine, count=6, rounds=2)
    assert conversations_again
    assert engine.memory.host is not None and engine.memory.host.disk is not None
    assert engine.memory.host.disk.num_damaged > 0


def test_a_full_disk_is_noted_in_the_trace(tmp_path, monkeypatch):
    engine = tiered(2, 1 << 20, memory__disk_path=str(tmp_path))
    disk = engine.memory.host.disk if engine.memory.host is not None else None
    assert disk is not None
    monkeypatch.setattr(disk, "failure", "memory.disk_path: the disk is full")
    conversations(engine, count=6, rounds=2)
    assert engine.trace.header.notes.count("memory.disk_path: the disk is full") == 1


def test_a_swapped_request_computes_nothing_twice():
    engine = engine_with(
        num_blocks=12,
        memory__prefix_cache="off",
        memory__watermark=0,
        memory__host_bytes=64 * BLOCK * TOKEN_BYTES,
        scheduling__preemption="swap",
        scheduling__max_model_len=40,
    )
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    requests = [engine.add(str(i), [i * 7 + j for j in range(1, 14)], params)[0] for i in range(4)]
    run(engine)
    totals = engine.trace.totals
    assert totals.preemptions > 0 and totals.recomputed_tokens == 0
    assert totals.swapped_in_blocks == totals.swapped_out_blocks > 0
    away, most = 0, 0
    for step in engine.trace.steps:
        away += step.blocks.swapped_out_blocks - step.blocks.swapped_in_blocks
        assert step.blocks.host_bytes == away * BLOCK * TOKEN_BYTES
        most = max(most, step.blocks.host_bytes)
    assert totals.peak_host_bytes == most > 0
    for request in requests:
        assert request.output_token_ids == oracle(request.prompt_token_ids, 20, True)


def test_a_full_host_falls_back_to_recomputation():
    engine = engine_with(
        num_blocks=12,
        memory__prefix_cache="off",
        memory__watermark=0,
        memory__host_bytes=BLOCK * TOKEN_BYTES,
        scheduling__preemption="swap",
        scheduling__max_model_len=40,
    )
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
    for i in range(4):
        engine.add(str(i), [i * 7 + j for j in range(1, 14)], params)
    run(engine)
    assert engine.trace.totals.recomputed_tokens > 0


def test_an_aborted_swapped_request_gives_its_slots_back():
    engine = engine_with(
        num_blocks=8,
        memory__prefix_cache="off",
        memory__watermark=0,
        memory__host_bytes=64 * BLOCK * TOKEN_BYTES,
        scheduling__preemption="swap",
        scheduling__max_model_len=32,
    )
    params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
    for i in range(3):
        engine.add(str(i), [i * 7 + j for j in range(1, 10)], params)
    host = engine.memory.host
    assert host is not None
    while not host.num_owned:
        engine.step()
    engine.abort_all()
    assert host.num_owned == 0
    engine.memory.check()


@pytest.mark.parametrize(
    ("reservation", "owned"), [("max_model_len", 32), ("power_of_two", 26), ("oracle", 24)]
)
def test_contiguous_requests_hold_all_they_may_need_from_the_start(reservation, owned):
    engine = engine_with(
        num_blocks=16,
        memory__prefix_cache="off",
        memory__layout="contiguous",
        memory__reservation=reservation,
        scheduling__max_model_len=32,
    )
    params = SamplingParams(max_tokens=14, temperature=0.0, ignore_eos=True)
    (request,) = engine.add("r", PROMPT[:10], params)
    step = engine.step()
    blocks = engine.memory.blocks_of(request)
    assert len(blocks) == -(-owned // BLOCK)
    assert list(blocks) == list(range(blocks[0], blocks[0] + len(blocks)))
    slots = len(blocks) * BLOCK
    assert step.blocks.future_bytes == (24 - 10) * TOKEN_BYTES
    assert step.blocks.internal_bytes == (slots - 24) * TOKEN_BYTES
    run(engine)
    assert request.output_token_ids == oracle(PROMPT[:10], 14, True)


def test_holes_that_are_too_small_are_external_fragmentation():
    engine = engine_with(
        num_blocks=8,
        memory__prefix_cache="off",
        memory__layout="contiguous",
        memory__reservation="oracle",
        scheduling__max_model_len=32,
    )
    short = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    long = SamplingParams(max_tokens=11, temperature=0.0, ignore_eos=True)
    for i, params in enumerate((short, long, short)):
        engine.add(str(i), [20 + i] * 5, params)  # 2, 4 and 2 pages: the pool is full
    engine.add("large", [33] * 5, long)
    step = engine.step()
    while engine.memory.pool.num_free < 4:
        step = engine.step()
    # 4 pages are free, but 2 and 2 with another request between them.
    assert step.blocks.external_bytes == 4 * BLOCK * TOKEN_BYTES
    run(engine)


def test_the_check_sees_a_page_that_two_would_write_to():
    memory = KVManager(full_group(8), block_size=4, max_num_seqs=3, blocks_per_request=6)
    a, b = (Request(n, [1], SamplingParams(), 0.0, 0, max_len=24) for n in "ab")
    for request in (a, b):
        memory.admit(request)
        memory.reserve(request, 6)
        memory.commit(request, 6)
    memory._tables.replace(memory._tables[b], 1, memory.blocks_of(a)[1])
    with pytest.raises(IntegrityError, match="will write into page"):
        memory.check()


def test_without_copy_on_write_samples_admitted_later_share_nothing_either():
    values = {"prefix_cache": "off", "copy_on_write": False}
    engine = engine_with(
        **{f"memory__{name}": value for name, value in values.items()},
        scheduling__max_num_batched_tokens=8,
    )
    engine.add("three", PROMPT, SamplingParams(n=3, max_tokens=4, temperature=0.0, ignore_eos=True))
    run(engine)
    totals = engine.trace.totals
    assert totals.hit_tokens == totals.copied_blocks == 0
    assert totals.prefill_tokens >= 3 * len(PROMPT)


@pytest.mark.parametrize("kind", ["hash", "radix"])
@pytest.mark.parametrize("order", ["fcfs", "lpm", "priority"])
def test_an_admission_searches_the_prefix_index_once(kind, order, monkeypatch):
    """It used to search up to four times: for the budget, the policy, the pages and the table."""
    engine = engine_with(
        memory__prefix_cache=kind, scheduling__order=order, scheduling__max_num_seqs=1
    )
    assert engine.memory.prefix is not None
    matches, match = [], engine.memory.prefix.index.match

    def counted(token_blocks, max_tokens):
        matches.append(max_tokens)
        return match(token_blocks, max_tokens)

    monkeypatch.setattr(engine.memory.prefix.index, "match", counted)
    ask(engine, "first", PROMPT)
    # These two orders look at waiting requests before anything is admitted: to rank them by what is
    # found, and to make room for them.
    before = {"fcfs": 0, "lpm": 1, "priority": 1}[order]
    assert len(matches) == before + 1
    matches.clear()
    assert ask(engine, "again", PROMPT).num_cached_tokens >= 16
    assert len(matches) == before + 1
