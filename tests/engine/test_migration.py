"""A request exported from one engine continues in another with identical tokens."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from engine.fakes import EchoProposer, make_engine, oracle, run
from hypothesis import given, settings
from hypothesis import strategies as st
from lossless.test_matrix import (  # noqa: F401  model_dir and expected are fixtures
    NEW_TOKENS,
    complete,
    expected,
    model_dir,
    prompts,
)

from minserve.build import build_engine
from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.engine.migration import ExportedRequest, ExportedSample
from minserve.loading import load_model
from minserve.memory import ExportedGroup, ExportedPages
from minserve.request import (
    InvalidRequestError,
    Request,
    SamplingParams,
    Status,
    TokenLogprobs,
)

PLAIN = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


def echo(num_blocks: int = 40, windows: Sequence[int | None] = (None,), **values: Any) -> Engine:
    names = {name.replace("__", "."): value for name, value in values.items()}
    return make_engine(EngineConfig().with_values(names), num_blocks, windows=windows)[0]


def moved(source: Engine, target: Engine, name: str) -> list[Request]:
    """Export, through a pickle as between two processes, and import."""
    parcel = pickle.dumps(source.export_request(name))
    source.audit()
    requests = target.import_request(pickle.loads(parcel))
    target.audit()
    return requests


# -- every state and every size, on a device whose slots can be seen ------------------------------


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 5, 16])] * 2),
    steps=st.integers(0, 30),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    caches=st.tuples(*[st.sampled_from(["off", "hash", "radix"])] * 2),
    overlap=st.booleans(),
    budget=st.sampled_from([8, 64]),
    drafts=st.booleans(),
    again=st.booleans(),
    windows=st.sampled_from([(None,), (None, 6), (9, None, 4)]),
)
def test_requests_move_at_any_step_between_any_two_pools(
    sizes, steps, lengths, caches, overlap, budget, drafts, again, windows
):
    engines = []
    for size, cache in zip(sizes, caches, strict=True):
        config = EngineConfig().with_values(
            {
                "memory.block_size": size,
                "memory.prefix_cache": cache,
                "memory.check_integrity": True,
                "memory.host_bytes": 64 * 120,
                "scheduling.preemption": "swap",
                "scheduling.max_num_seqs": 3,
                "scheduling.max_num_batched_tokens": budget,
                "scheduling.async_scheduling": overlap,
            }
        )
        proposer = EchoProposer(windows == (None,), 0.7) if drafts else None
        built = make_engine(config, -(-80 // size), proposer=proposer, windows=windows)
        engines.append(built[0])
    source, target = engines
    for index, length in enumerate(lengths):
        source.add(str(index), [index + 2] * length, PLAIN)
    for _ in range(steps):
        if source.has_work:
            source.step()
    live = {request.request_id: request for request in source.live_requests()}
    requests: dict[str, Request] = {}
    for name, request in live.items():
        source.settle()
        if request.finished:
            continue  # with the step in flight
        (requests[name],) = moved(source, target, name)
        if again and target.has_work:  # there and back while the other one works
            target.step()
            target.settle()
            if not requests[name].finished:
                (requests[name],) = moved(target, source, name)
    for each in engines:
        run(each)
        each.audit()
        assert each.memory.pool.num_owned == 0 and not each.has_requests
    for name, request in requests.items():
        expected_tokens = oracle([int(name) + 2] * lengths[int(name)], 20, True)
        assert (request.finish_reason, request.output_token_ids) == ("length", expected_tokens)
    # What the prefix cache kept of them is right too: a next turn that finds it, and a fork of it.
    for number, request in enumerate(requests.values()):
        for cut in (0, 7, 13):
            prompt = request.token_ids[: request.num_tokens - cut]
            (turn,) = target.add(f"turn {number} {cut}", prompt, replace(PLAIN, max_tokens=3))
            run(target)
            assert turn.output_token_ids == oracle(prompt, 3, True)


def test_computed_tokens_are_not_computed_again() -> None:
    source, target = echo(memory__block_size=4), echo(memory__block_size=5)
    source.add("r", list(range(2, 33)), PLAIN)
    while source.live_requests()[0].num_output_tokens < 5:
        source.step()
    before = source.live_requests()[0].num_computed_tokens
    (request,) = moved(source, target, "r")
    assert request.num_computed_tokens == before == 31 + 4
    run(target)
    totals = target.trace.totals
    # Its newest token, and one for each token after it.
    assert totals.prefill_tokens + totals.decode_tokens == 15 and not totals.recomputed_tokens
    assert totals.imported_blocks == 7  # 35 tokens in pages of 5
    source.add("s", [3], replace(PLAIN, max_tokens=1))
    run(source)
    assert source.trace.totals.exported_blocks == 9  # in pages of 4


def test_a_swapped_out_request_moves_from_its_host_slots() -> None:
    source = echo(
        9, memory__block_size=4, memory__host_bytes=64 * 64, scheduling__preemption="swap"
    )
    first, second = (source.add(name, [3, 4, 5] * 5, PLAIN)[0] for name in "ab")
    while not second.num_preemptions:
        source.step()
    assert second in source.memory.away and not source.memory.blocks_of(second)
    target = echo()
    (request,) = moved(source, target, "b")
    assert request.num_computed_tokens > 0 and request.num_preemptions == 1
    run(target)
    run(source)
    assert request.output_token_ids == first.output_token_ids == oracle([3, 4, 5] * 5, 20, True)
    assert not target.trace.totals.recomputed_tokens


def test_an_imported_request_that_was_not_admitted_yet_can_move_on() -> None:
    one, two, three = echo(), echo(scheduling__max_num_seqs=1), echo()
    one.add("r", [4, 5, 6], PLAIN)
    for _ in range(4):
        one.step()
    two.add("busy", [9], PLAIN)
    two.step()
    moved(one, two, "r")
    (request,) = moved(two, three, "r")
    run(three)
    run(two)
    assert request.output_token_ids == oracle([4, 5, 6], 20, True)


def events(request: Request) -> tuple[float, ...]:
    return (
        request.arrival_s, request.first_scheduled_s, request.first_token_s, request.last_token_s,
    )  # fmt: skip


def test_times_are_carried_over_as_ages() -> None:
    source, target = echo(), echo()
    source.add("r", [4, 5, 6], PLAIN)
    for _ in range(3):
        source.step()
    (before,) = source.live_requests()
    now = source.clock.now()
    assert before.last_token_s is not None and before.last_token_s > before.first_token_s
    ages = [now - at for at in events(before)]
    target.add("other", [9] * 50, replace(PLAIN, max_tokens=1))
    run(target)
    (request,) = moved(source, target, "r")
    there = target.clock.now()
    assert [there - at for at in events(request)] == pytest.approx(ages)
    assert source.trace.requests == ()  # it has not ended here


@pytest.mark.parametrize("has_run", [False, True])
def test_the_time_that_a_request_ran_elsewhere_does_not_make_it_urgent(has_run: bool) -> None:
    source = echo()
    source.add("r", [4, 5, 6], PLAIN)
    if has_run:
        source.step()
    source.clock.advance(60.0)  # type: ignore[attr-defined]
    target = echo(
        scheduling__max_num_seqs=1,
        scheduling__order="priority",
        scheduling__starvation_limit_s=5.0,
    )
    target.clock.advance(100.0)  # type: ignore[attr-defined]
    target.add("busy", [9], PLAIN)
    (first,) = target.add("first", [9], PLAIN, priority=-1)
    (request,) = moved(source, target, "r")
    while not first.finished:
        target.step()
    assert (request.num_output_tokens > 1) == (not has_run)
    run(target)
    assert request.output_token_ids == oracle([4, 5, 6], 20, True)


def test_an_export_waits_for_the_step_in_flight() -> None:
    source, target = echo(scheduling__async_scheduling=True), echo()
    (before,) = source.add("r", [4, 5, 6], PLAIN)
    for _ in range(3):
        source.step()
    assert source._in_flight and before.num_inflight_tokens == 1
    known = before.num_tokens
    (request,) = moved(source, target, "r")
    assert not source._in_flight and request.status is Status.PREEMPTED
    assert request.num_tokens == request.num_computed_tokens + 1 == known + 1
    run(target)
    assert request.output_token_ids == oracle([4, 5, 6], 20, True)


def test_an_aborted_import_gives_everything_back() -> None:
    source, target = echo(), echo(scheduling__max_num_seqs=1)
    source.add("r", [4, 5, 6], PLAIN)
    for _ in range(3):
        source.step()
    target.add("busy", [9], PLAIN)
    target.step()
    (request,) = moved(source, target, "r")
    assert target.abort("r") and request.finish_reason == "abort"
    assert request not in target.memory.away
    run(target)
    target.audit()


@pytest.mark.parametrize("then", ["swapped out", "moved on"])
def test_a_window_that_began_inside_a_page_never_becomes_a_prefix(then: str) -> None:
    """Page 4 of 5 tokens holds tokens 20 to 24; the engine with pages of one token had dropped
    those before 21, and a prefix of 25 tokens reads from 20 on."""
    values: dict[str, Any] = {
        "memory__block_size": 5,
        "memory__prefix_cache": "hash",
        "memory__host_bytes": 2 * 64 * 40,
        "scheduling__preemption": "swap",
        "scheduling__order": "priority",
        "scheduling__max_num_seqs": 1,
    }
    windows = (None, 6)
    source = echo(80, windows=windows, memory__block_size=1)
    target = echo(windows=windows, **values)
    source.add("r", list(range(2, 28)), PLAIN, priority=1)
    while source.live_requests()[0].num_computed_tokens < 27:
        source.step()
    (request,) = moved(source, target, "r")
    target.step()
    memory = target.memory
    window = memory.groups[1]
    assert request.num_computed_tokens == 28
    assert window.tables.totals() == (2, 28) and window.tables.num_skipped_tokens() == 21
    if then == "swapped out":
        target.add("urgent", [3], replace(PLAIN, max_tokens=1))
        run(target)
        assert request.num_preemptions == 1 and target.trace.totals.swapped_in_blocks
    else:
        parcel = target.export_request("r")
        assert parcel.samples[0].pages is not None
        assert [group.first for group in parcel.samples[0].pages.groups] == [0, 21]
        target = echo(windows=windows, **values)
        (request,) = target.import_request(parcel)
        run(target)
    assert request.output_token_ids == oracle(list(range(2, 28)), 20, True)
    (turn,) = target.add("turn", request.token_ids[:26], replace(PLAIN, max_tokens=3))
    run(target)
    assert turn.output_token_ids == oracle(request.token_ids[:26], 3, True)
    assert turn.num_cached_tokens == 0


# -- refusals -------------------------------------------------------------------------------------


def parcel_of(**values: Any) -> tuple[Engine, Any]:
    source = echo(**values)
    source.add("r", [4, 5, 6, 7, 8], PLAIN)
    for _ in range(3):
        source.step()
    return source, source.export_request("r")


def test_what_cannot_be_exported_is_said_and_hurts_no_other_request() -> None:
    source, _ = parcel_of()
    (bystander,) = source.add("bystander", [4, 5], PLAIN)
    source.step()
    for name in ("r", "never", None, 7):
        with pytest.raises(InvalidRequestError, match="no live request has this name"):
            source.export_request(name)  # type: ignore[arg-type]
    run(source)
    assert bystander.output_token_ids == oracle([4, 5], 20, True)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["forget", "_drop_name"])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("after", [False, True])
def test_an_export_that_fails_half_way_ends_its_samples_and_no_other_request(
    error: type[BaseException], name: str, number: int, after: bool, monkeypatch: Any
) -> None:
    source = echo()
    requests = source.add("r", [4, 5, 6], replace(PLAIN, n=3))
    (bystander,) = source.add("bystander", [4, 5], PLAIN)
    for _ in range(3):
        source.step()
    real, calls = getattr(source._requests, name), []

    def fail(request: Request) -> None:
        calls.append(request)
        if len(calls) != number + 1:
            return real(request)
        if after:
            real(request)
        raise error("cut off")

    monkeypatch.setattr(source._requests, name, fail)
    with pytest.raises(error, match="cut off"):
        source.export_request("r")
    source.audit()
    assert {request.finish_reason for request in requests} == {"error"}
    assert len(source.trace.requests) == 3
    run(source)
    assert bystander.output_token_ids == oracle([4, 5], 20, True)
    assert source.memory.pool.num_owned == 0


@pytest.mark.parametrize("wrong", [None, {}, "r", 7])
def test_what_is_no_export_is_refused(wrong: Any) -> None:
    target = echo()
    with pytest.raises(InvalidRequestError, match="expected what export_request returned"):
        target.import_request(wrong)


def test_an_engine_that_cannot_continue_refuses_and_is_unchanged() -> None:
    _, parcel = parcel_of()
    sample = parcel.samples[0]
    pages = sample.pages
    group = pages.groups[0]

    def changed(**values: Any) -> Any:
        return replace(parcel, samples=(replace(sample, **values),))

    def with_group(**values: Any) -> Any:
        return changed(pages=replace(pages, groups=(replace(group, **values),)))

    cases = [
        (replace(parcel, model=replace(parcel.model, norm_eps=0.5)), "this engine serves another"),
        (replace(parcel, dtype="float64"), "same EngineConfig.dtype"),
        (replace(parcel, weights="int8"), "int8 weights, and this engine's are dense: give both"),
        (changed(max_len=1000), "it may reach 1000 tokens, and this engine serves 128"),
        (changed(pages=replace(pages, num_tokens=0)), "expected 1 to"),
        (changed(pages=replace(pages, num_tokens=99)), "expected 1 to"),
        (changed(pages=replace(pages, groups=())), "of other cache groups"),
        (with_group(first=2), "the last 7 tokens at least"),
        (with_group(tensors=()), "it brings .* expected"),
        (with_group(tensors=tuple(each[..., :3, :] for each in group.tensors)), "expected"),
        (replace(parcel, prompt_token_ids=()), "the prompt is empty"),
        (replace(parcel, prompt_token_ids=(1, 10**6)), "outside the vocabulary"),
        (replace(parcel, request_id=""), "request_id"),
    ]
    for bad, says in cases:
        target = echo()
        with pytest.raises(InvalidRequestError, match=says):
            target.import_request(bad)
        assert not target.has_requests and not target.has_work
        target.audit()
    target = echo()
    target.add("r", [1], PLAIN)
    with pytest.raises(InvalidRequestError, match="one of this name is still running"):
        target.import_request(parcel)
    with pytest.raises(InvalidRequestError, match=r"memory\.kv_cache=False keeps no pages"):
        echo(memory__kv_cache=False).import_request(parcel)


ODD: list[Any] = [
    None, -1, 0, 10**30, 1.5, math.nan, math.inf, "x", (), (1,), [1], (None,), {}, object(), True,
    torch.zeros(2), (10**6,), (-1,), (math.nan,),
]  # fmt: skip


def damaged(found: Any) -> Iterator[Any]:
    """`found` with each field of each of its parts replaced by each odd value, by itself."""
    for field in fields(found):
        value = getattr(found, field.name)
        for odd in ODD:
            yield replace(found, **{field.name: odd})
        parts = value if isinstance(value, tuple) else (value,)
        for index, part in enumerate(parts):
            if isinstance(part, (ExportedSample, ExportedPages, ExportedGroup, TokenLogprobs)):
                for bad in damaged(part):
                    some = (*parts[:index], bad, *parts[index + 1 :])
                    new = some if isinstance(value, tuple) else bad
                    yield replace(found, **{field.name: new})


def test_a_damaged_export_is_refused_in_one_sentence_or_served_and_costs_no_other_request() -> None:
    source = echo(windows=(None, 6))
    source.add("r", [4, 5, 6, 7, 8], replace(PLAIN, logprobs=1))
    for _ in range(9):
        source.step()
    parcel = source.export_request("r")
    sample = parcel.samples[0]
    tokens = sample.token_ids
    cases = [
        *damaged(parcel),
        *(
            replace(parcel, samples=samples)
            for samples in (
                (sample, sample),
                (replace(sample, token_ids=tokens[:3]),),
                (replace(sample, token_ids=(9, *tokens[1:])),),
                (replace(sample, token_ids=(*tokens[:-1], 97)),),
                (replace(sample, token_ids=(*tokens[:-1], -1)),),
                (replace(sample, max_len=len(tokens)),),
                (object.__new__(ExportedSample),),
            )
        ),
        object.__new__(ExportedRequest),
    ]
    refused = 0
    for bad in cases:
        target = echo(windows=(None, 6))
        (bystander,) = target.add("bystander", [3, 4], replace(PLAIN, max_tokens=3))
        target.step()
        try:
            requests = target.import_request(bad)
        except InvalidRequestError as error:
            refused, requests = refused + 1, []
            assert "\n" not in str(error)
            assert target.live_requests() == [bystander]
        target.audit()
        run(target)
        assert bystander.output_token_ids == oracle([3, 4], 3, True)
        for request in requests:
            assert request.output_token_ids == oracle([4, 5, 6, 7, 8], 20, True)
    assert refused > 500


def test_an_export_of_a_request_that_numpy_described_is_plain() -> None:
    source = echo()
    source.add("r", np.array([4, 5, 6]), PLAIN)  # type: ignore[arg-type]
    source.step()
    (request,) = moved(source, echo(), "r")
    assert {type(token) for token in request.token_ids} == {int}


def test_what_counts_is_how_long_the_request_may_become_here() -> None:
    """`max_tokens` asks for more than this engine holds, and than the other one would give."""
    source = echo(scheduling__max_model_len=30)
    source.add("r", [4, 5, 6], replace(PLAIN, max_tokens=100))
    source.step()
    target = echo(10, memory__block_size=4)
    (request,) = moved(source, target, "r")
    run(target)
    assert request.output_token_ids == oracle([4, 5, 6], 27, True)


def test_windows_that_one_engine_ignores_are_said_to_be_the_reason() -> None:
    source = echo(windows=(None, 16))
    source.add("r", [4, 5, 6], PLAIN)
    source.step()
    target = echo(windows=(None, 16), scheduling__max_model_len=16)
    with pytest.raises(InvalidRequestError, match="give both engines the same max_model_len"):
        target.import_request(source.export_request("r"))


def test_a_request_without_computed_tokens_may_go_to_an_engine_without_a_cache() -> None:
    source, target = echo(), echo(memory__kv_cache=False)
    source.add("r", [4, 5], PLAIN)
    (request,) = moved(source, target, "r")
    run(target)
    assert request.output_token_ids == oracle([4, 5], 20, True)


# -- a real model ---------------------------------------------------------------------------------

TARGETS: dict[str, dict[str, Any]] = {
    "same": {},
    "smaller pages": {"memory.block_size": 7},
    "larger pages": {"memory.block_size": 64},
    "tiny pool": {"memory.kv_bytes": "tiny"},
    "swapping": {"memory.kv_bytes": "tiny", "scheduling.preemption": "swap"},
    "radix, overlapped": {"memory.prefix_cache": "radix", "scheduling.async_scheduling": True},
    "hash": {"memory.prefix_cache": "hash"},
    "torch operators": {"kernels.backend": "torch"},
    "graphs": {"kernels.cuda_graphs": True},
    "contiguous": {"memory.layout": "contiguous"},
    "static": {"scheduling.policy": "static"},
    "shortest first": {"scheduling.order": "sjf"},
}
PARAMS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "top_k": 30, "n": 2},
    "penalties": {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.3},
    "logprobs": {"temperature": 1.0, "logprobs": 2, "prompt_logprobs": 1},
}


def build(model_dir, values: dict[str, Any]) -> Engine:  # noqa: F811
    return build_engine(load_model(model_dir, EngineConfig().with_values(complete(values))))


def all_added(engine: Engine, how: dict[str, Any]) -> list[Request]:
    found = []
    for index, (prompt, count) in enumerate(zip(prompts(), NEW_TOKENS, strict=True)):
        params = SamplingParams(
            **({"max_tokens": count, "temperature": 0.0, "seed": index, "ignore_eos": True} | how)
        )
        found += engine.add(str(index), prompt, params)
    return found


@pytest.mark.parametrize("how", PARAMS)
@pytest.mark.parametrize("name", TARGETS)
def test_half_of_the_requests_move(name, how, model_dir):  # noqa: F811
    plain = build(model_dir, {})
    answers = {(r.request_id, r.sample_index): r for r in all_added(plain, PARAMS[how])}
    while plain.has_work:
        plain.step()
    source, target = build(model_dir, {}), build(model_dir, TARGETS[name])
    requests = {(r.request_id, r.sample_index): r for r in all_added(source, PARAMS[how])}
    for turn in range(9):
        if source.has_work:
            source.step()
        if target.has_work:
            target.step()
        live = sorted({r.request_id for r in source.live_requests()}, key=int)
        if live and turn % 2:
            for request in moved(source, target, live[turn % len(live)]):
                requests[request.request_id, request.sample_index] = request
    for engine in (source, target):
        while engine.has_work:
            engine.step()
        engine.audit()
        assert engine.memory.pool.num_owned == 0
    assert target.trace.totals.imported_blocks > 0
    for key, answer in answers.items():
        request = requests[key]
        assert request.output_token_ids == answer.output_token_ids
        assert request.finish_reason == answer.finish_reason
        assert [entry.token_id for entry in request.logprobs] == [
            entry.token_id for entry in answer.logprobs
        ]
        assert len(request.prompt_logprobs) == len(answer.prompt_logprobs)


def test_bytes_are_those_of_the_computed_tokens(model_dir):  # noqa: F811
    engine = build(model_dir, {})
    engine.add("r", prompts()[4], SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True))
    engine.step()
    parcel = engine.export_request("r")
    assert parcel.samples[0].pages.num_tokens == 64
    assert parcel.nbytes == 64 * 3 * 2 * 2 * 16 * 8  # layers, key and value, heads, size, float64
    assert {t.dtype for t in parcel.samples[0].pages.groups[0].tensors} == {torch.float64}


def test_text_and_stop_strings_go_on(tmp_path):
    from minserve import LLM

    llm = LLM("zoo/draft", EngineConfig(device="cpu", dtype="float32"))
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    (output,) = llm.generate(["def add(a, b):\n"], params)
    stop = output.text[12:16]
    (stopped,) = llm.generate(["def add(a, b):\n"], replace(params, stop=(stop,)))
    loaded = load_model("zoo/draft", EngineConfig(device="cpu", dtype="float32"))
    source, target = build_engine(loaded), build_engine(loaded)
    prompt = loaded.encode("def add(a, b):\n")
    source.add("r", prompt, replace(params, stop=(stop,)), stream_text=True)
    for _ in range(3):
        source.step()
    (request,) = moved(source, target, "r")
    assert target.text_of(request) == output.text[: len(target.text_of(request))] != ""
    while target.has_work:
        target.step()
    assert (request.finish_reason, request.stop_reason) == ("stop", stop)
    assert target.text_of(request) == stopped.text
