"""Layers that forget: the tokens are those of keeping everything, and the pages are few."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lossless.windowed import (
    LONGEST,
    PAGE,
    WINDOW,
    ask,
    configurations,
    engine_of,
    outputs,
    poison,
    prompt,
    run,
    tight,
    windowed_model,
)
from models.oracle import logits, patch_to_true_float64

from minserve.build import build_virtual_engine
from minserve.engine.pins import check_pin, pin_computed
from minserve.hardware import DEVICES
from minserve.memory import plan_blocks
from minserve.request import InvalidRequestError, Request
from minserve.virtual import CostModel

KINDS = ("alternating", "full then windows", "windows")
LENGTHS = (300, 9, 130, 64, 47, 201)
WRITTEN = 30


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return windowed_model(kind, tmp_path_factory.mktemp("windows"))


@pytest.fixture(scope="module")
def model_dir(model: tuple[Any, Path]) -> Path:
    return model[1]


@pytest.fixture(scope="module")
def expected(model_dir: Path) -> list[list[int]]:
    """One page for everything, one chunk for every prompt, one request at a time."""
    engine = engine_of(
        model_dir,
        {
            "memory.block_size": 1024,
            "scheduling.max_num_batched_tokens": LONGEST,
            "scheduling.max_num_seqs": 1,
        },
    )
    requests = ask(engine, [prompt(n, length) for n, length in enumerate(LENGTHS)], WRITTEN)
    run(engine)
    return outputs(requests)


def prompts() -> list[list[int]]:
    return [prompt(n, length) for n, length in enumerate(LENGTHS)]


def test_cases_are_what_they_are_called(model_dir, kind):
    windows = [layer.mixer.window for layer in engine_of(model_dir).config.model.layers]
    assert (
        windows
        == {
            "alternating": [None, WINDOW, None, WINDOW],
            "full then windows": [None, WINDOW, WINDOW, WINDOW],
            "windows": [WINDOW] * 4,
        }[kind]
    )
    assert set(configurations()) == set(KINDS)


@pytest.mark.parametrize("overlap", [False, True])
def test_tokens_are_those_of_transformers_and_a_window_holds_seventeen_pages(model, overlap):
    oracle, model_dir = model
    engine = engine_of(model_dir, {"scheduling.async_scheduling": overlap})
    (request,) = ask(engine, [prompt(0, 960)], 40)
    most = dict.fromkeys(range(len(engine.memory.groups)), 0)

    def look() -> None:
        for index, group in enumerate(engine.memory.groups):
            table = group.tables.get(request)
            most[index] = max(most[index], len(table.blocks) if table is not None else 0)

    run(engine, look)
    choices = logits(patch_to_true_float64(oracle), request.token_ids).argmax(-1).tolist()
    assert request.output_token_ids == choices[959:-1]
    for index, group in enumerate(engine.memory.groups):
        if group.retention.keeps_all:
            assert most[index] == 125
        else:
            # With overlap, the next chunk is reserved while one is in flight.
            assert 7 <= most[index] <= (25 if overlap else 17)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("page", [1, 8, 48, 64])
@pytest.mark.parametrize("budget", [16, 1024])
def test_any_page_and_chunk_gives_the_same_tokens(model_dir, expected, page, budget, backend):
    engine = engine_of(
        model_dir,
        {
            "kernels.backend": backend,
            "memory.block_size": page,
            "scheduling.max_num_batched_tokens": budget,
        },
    )
    requests = ask(engine, prompts(), WRITTEN)
    run(engine)
    assert outputs(requests) == expected


CACHES: dict[str, dict[str, Any]] = {
    "off": {},
    "hash": {"memory.prefix_cache": "hash"},
    "radix": {"memory.prefix_cache": "radix"},
}


def skip_impossible(kind: str, cache: str) -> None:
    if kind == "windows" and cache == "radix":
        pytest.skip("refused: a tree keeps a page only behind those before it")


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("swaps", [False, True])
def test_preempted_requests_come_back_with_the_same_tokens(
    model_dir, kind, expected, cache, overlap, swaps
):
    skip_impossible(kind, cache)
    values = CACHES[cache] | {
        "scheduling.async_scheduling": overlap,
        # With overlap two chunks may be on their way, for which a window needs pages.
        "scheduling.max_num_batched_tokens": 32 if overlap else 64,
    }
    engine = engine_of(model_dir, tight(model_dir, 20 if kind == "windows" else 44, values, swaps))
    requests = ask(engine, prompts(), WRITTEN)
    run(engine)
    assert outputs(requests) == expected
    totals = engine.trace.totals
    assert totals.preemptions > 0
    if swaps:
        assert totals.swapped_out_blocks == totals.swapped_in_blocks > 0 or cache != "off"
        assert totals.swapped_out_blocks > 0
        hosts = [group.host for group in engine.memory.groups]
        assert all(host.num_owned == 0 and host.num_cached == 0 for host in hosts)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("length", range(193, 203))
def test_samples_share_the_prompt_in_every_group(model_dir, kind, cache, length):
    """Also where the prompt ends just behind a page, which the window then begins after."""
    skip_impossible(kind, cache)
    alone = engine_of(model_dir, {"memory.copy_on_write": False})
    values: dict[str, Any] = {"temperature": 0.8, "seed": 3, "n": 3}
    wanted = ask(alone, [prompt(1, length)], 12, **values)
    run(alone)
    engine = engine_of(model_dir, CACHES[cache])
    requests = ask(engine, [prompt(1, length)], 12, **values)
    run(engine)
    assert outputs(requests) == outputs(wanted)
    assert [request.num_cached_tokens for request in requests] == [0, length - 1, length - 1]


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_a_prefix_is_found_in_every_group_at_once(model_dir, kind, cache):
    skip_impossible(kind, cache)
    questions = [prompt(n, 280, shared=200) for n in range(4)]
    plain = engine_of(model_dir)
    wanted = ask(plain, questions, 20)
    run(plain)
    engine = engine_of(model_dir, CACHES[cache])
    found: list[Request] = []
    for question in questions:  # one after the other
        found += ask(engine, [question], 20)
        run(engine)
    assert outputs(found) == outputs(wanted)
    # Pages 0 to 24 hold the shared 200 tokens.
    assert [request.num_cached_tokens for request in found] == [0, 200, 200, 200]
    (again,) = ask(engine, [questions[2]], 20)
    run(engine)
    assert again.num_cached_tokens == 272
    assert outputs([again]) == outputs(wanted)[2:3]


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_a_window_whose_pages_are_gone_shortens_the_prefix(model_dir, kind, cache):
    """The hit ends where every group still has the pages that the next token reads."""
    skip_impossible(kind, cache)
    engine = engine_of(model_dir, CACHES[cache])
    (first,) = ask(engine, [prompt(0, 280)], 4)
    run(engine)
    windows = [group for group in engine.memory.groups if not group.retention.keeps_all]
    for group in windows:  # evict the pages of tokens 240 to 247
        index = group.prefix.index
        gone = group._find(engine.memory._reuse._blocks_of(first), 30)
        engine.memory._reuse.forget(first)
        del group.pool._cached[gone]
        group.pool._indexed[gone] = 0
        index.remove(gone)
        group.pool._free.append(gone)
    (again,) = ask(engine, [prompt(0, 280)], 4)
    run(engine)
    assert again.num_cached_tokens == 240
    assert outputs([again]) == outputs([first])


@pytest.mark.parametrize("cache", CACHES)
def test_aborts_in_the_middle_leave_nothing_behind(model_dir, kind, expected, cache):
    skip_impossible(kind, cache)
    engine = engine_of(model_dir, tight(model_dir, 50, CACHES[cache]))
    requests = ask(engine, prompts(), WRITTEN)

    def abort() -> None:
        for request in requests[::3]:
            if not request.finished and request.num_computed_tokens > 60:
                engine.abort(request.request_id)

    run(engine, abort)
    for request, tokens in zip(requests, expected, strict=True):
        if request.finish_reason == "abort":
            assert request.output_token_ids == tokens[: request.num_output_tokens]
        else:
            assert request.output_token_ids == tokens
    assert any(request.finish_reason == "abort" for request in requests)


@pytest.mark.parametrize("pages", [(8, 5), (5, 16), (16, 1)])
def test_requests_move_with_their_windows_to_pages_of_another_size(model_dir, expected, pages):
    """And on to a third engine; what they leave in its prefix cache is right too."""
    engines = [
        engine_of(model_dir, {"memory.block_size": page, "memory.prefix_cache": "hash"})
        for page in (*pages, pages[0] + 2)
    ]
    requests = ask(engines[0], prompts(), WRITTEN)
    for turn, (source, target) in enumerate(pairwise(engines)):
        for _ in range(9):
            poison(source)
            source.step()
            poison(target)
            if target.has_work:
                target.step()
        for index, request in enumerate(requests):
            if request in source.live_requests() and (index + turn) % 3:
                parcel = pickle.dumps(source.export_request(request.request_id))
                (requests[index],) = target.import_request(pickle.loads(parcel))
    for engine in reversed(engines):
        run(engine)
    assert outputs(requests) == expected
    again = [ask(engine, prompts(), WRITTEN) for engine in engines]
    for engine, repeated in zip(engines, again, strict=True):
        run(engine)
        assert outputs(repeated) == expected
        assert engine.trace.totals.imported_blocks > 0 or engine is engines[0]


def test_the_pool_is_divided_to_the_byte(model_dir, kind):
    for num_bytes in (1 << 16, 123_457, 1 << 18, 1_000_003):
        engine = engine_of(model_dir, {"memory.kv_bytes": num_bytes, "memory.prefix_cache": "hash"})
        plans = [group.plan for group in engine.memory.groups]
        used = sum(plan.num_blocks * plan.block_bytes for plan in plans)
        # One page more of the primary group, and of those that grow with it, does not fit.
        more = plan_blocks(engine.config, engine.memory.pool.num_blocks + 1)
        assert used <= num_bytes < sum(plan.num_blocks * plan.block_bytes for plan in more)
        step = engine.memory.use()
        assert step.total_bytes == used
        cache = engine.memory._store
        assert cache.nbytes == used


def test_bytes_in_the_trace_are_sums_over_the_groups(model_dir, kind):
    engine = engine_of(model_dir)
    ask(engine, [prompt(0, 300)], 20)
    while engine.has_work:
        step = engine.step()
        groups = engine.memory.groups
        assert step.blocks_total == sum(group.pool.num_blocks for group in groups)
        assert step.kv_bytes_used <= step.kv_bytes_allocated <= step.kv_bytes_reserved
        if not step.num_finished:
            slot_bytes = [group.plan.block_bytes // PAGE for group in groups]
            kept = [
                sum(
                    one.num_computed_tokens - table.first * PAGE
                    for one, table in group.tables.by_request.items()
                )
                for group in groups
            ]
            assert step.kv_bytes_used == sum(a * b for a, b in zip(kept, slot_bytes, strict=True))
            owned = [group.pool.num_owned for group in groups]
            assert step.blocks.owned_bytes == PAGE * sum(
                a * b for a, b in zip(owned, slot_bytes, strict=True)
            )


@pytest.mark.parametrize("cache", ["hash", "radix"])
def test_a_pinned_prefix_stays_in_every_group(model_dir, kind, cache):
    skip_impossible(kind, cache)
    engine = engine_of(model_dir, tight(model_dir, 120, CACHES[cache]))
    ask(engine, [prompt(0, 201)], 1)
    run(engine)
    check_pin(engine, prompt(0, 201))
    handle = pin_computed(engine, prompt(0, 201))
    assert handle is not None
    engine.memory.check()
    crowd = ask(engine, [prompt(n, 500) for n in range(1, 7)], 4)
    while engine.has_work:
        poison(engine)
        engine.step()
    assert len(outputs(crowd)) == 6
    (again,) = ask(engine, [prompt(0, 201)], 4)
    while engine.has_work:
        poison(engine)
        engine.step()
    assert again.num_cached_tokens == 200
    engine.unpin(handle)
    run(engine)


def test_a_pin_that_a_window_has_no_room_for_is_refused(model_dir, kind):
    values = {"memory.prefix_cache": "hash", "scheduling.max_num_seqs": 1}
    engine = engine_of(model_dir, tight(model_dir, 120, values))
    handles = []
    with pytest.raises(InvalidRequestError, match="half of the pool"):
        for number in range(40):
            tokens = prompt(number, 80)
            ask(engine, [tokens], 1)
            while engine.has_work:
                engine.step()
            check_pin(engine, tokens)
            handles.append(pin_computed(engine, tokens))
    assert handles and None not in handles
    (longest,) = ask(engine, [prompt(99, 400)], 20)
    while engine.has_work:
        engine.step()
    assert longest.finish_reason == "length"


def test_modelled_time_holds_the_pages_that_real_time_holds(model_dir, kind):
    real = engine_of(model_dir, {"memory.kv_bytes": 1 << 20, "dtype": "float32"})
    cost = CostModel(DEVICES["A100 80GB SXM"], dtype="float32", efficiency=0.5)
    modelled = build_virtual_engine(real.config.model, real.config.config, cost)
    steps: list[list[tuple[int, int, int]]] = []
    for engine in (real, modelled):
        ask(engine, prompts(), WRITTEN)
        found = []
        while engine.has_work:
            if engine is modelled and modelled.fast_forward():
                continue
            step = engine.step()
            found.append((step.blocks_used, step.kv_tokens, step.kv_bytes_used))
        steps.append(found)
    assert steps[0] == steps[1]
