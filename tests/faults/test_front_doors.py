"""Faults as callers meet them: through `LLM` and `AsyncLLM`, over a real model."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults.inject import DOORS, ROOMS, Injected, Injector, Panic

from minserve import LLM, AsyncLLM, EngineConfig, EngineError, SamplingParams
from minserve.engine import Engine

SHARED = "import os\nimport sys\n\n\ndef main("
PROMPTS = [SHARED + end for end in ("a, b):\n", "path):\n", "):\n    ", "x=3):\n    return")]
NEXT = [SHARED + "n):\n", "class Node:", SHARED + "a, b):\n    return a"]
BLOCK_BYTES = 2 * 2 * 2 * 32 * 8 * 4
"""Of a page of four tokens of zoo/draft in float64, roughly: sizes below are in such pages."""
ERRORS: dict[str, Callable[[], BaseException]] = {
    "error": Injected,
    "panic": Panic,
    "interrupt": KeyboardInterrupt,
}


def config(overlap: bool) -> EngineConfig:
    return EngineConfig(dtype="float64", device="cpu").with_values(
        {
            "memory.block_size": 4,
            "memory.kv_bytes": 30 * BLOCK_BYTES,
            "memory.prefix_cache": "radix",
            "memory.host_bytes": 30 * BLOCK_BYTES,
            "scheduling.max_num_seqs": 3,
            "scheduling.max_model_len": 100,
            "scheduling.max_num_batched_tokens": 24,
            "scheduling.preemption": "swap",
            "scheduling.async_scheduling": overlap,
        }
    )


STEPS = 1_150
"""Of each kind of the long runs: 12 through LLM and 6 through AsyncLLM, over 20,000 in all."""

PARAMS = [
    SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True),
    SamplingParams(max_tokens=7, temperature=0.8, seed=3, top_p=0.9, logprobs=2, ignore_eos=True),
    SamplingParams(max_tokens=8, temperature=0.0, repetition_penalty=1.2, stop="zzz"),
    SamplingParams(max_tokens=6, temperature=0.0, n=2, bad_words=["return"], prompt_logprobs=0),
]


@pytest.fixture(scope="module", params=[False, True], ids=["in turns", "overlapped"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM("zoo/draft", config(request.param)) as model:
        yield model


def answers(llm: LLM) -> list[tuple[int, ...]]:
    outputs = llm.generate(NEXT, [PARAMS[0], PARAMS[1], PARAMS[2]], progress=False)
    return [output.token_ids for output in outputs]


def expect_clean(engine: Engine) -> None:
    engine.memory.check()
    engine._scheduler.check()
    assert engine.memory.pool.num_owned == 0
    assert engine.memory.host is not None and engine.memory.host.num_owned == 0
    assert (
        not engine._requests
        and not engine._requests.texts
        and not engine._in_flight
        and not engine._requests.news
    )


def one_call(llm: LLM, seed: int, kind: str, lines: bool, expected: list[tuple[int, ...]]) -> None:
    rng = random.Random(f"{seed} {kind} {lines}")
    rooms = DOORS if kind == "interrupt" else ROOMS
    span = rng.choice([200, 4000, 20_000]) * (6 if lines else 1)
    injector = Injector(ERRORS[kind], rng.randrange(span), rooms=rooms, lines=lines)
    how = rng.choice(["raise", "return", "stream"])
    streams: list[Any] = []
    try:
        with injector:
            if how == "stream":
                for prompt in PROMPTS[:2]:
                    streams.append(llm.stream(prompt, PARAMS[0]))
                for stream in streams:
                    list(stream)
            else:
                llm.generate(PROMPTS, PARAMS, progress=False, errors=how)  # type: ignore[arg-type]
    except BaseException as error:
        assert injector.fired, error
        assert isinstance(error, (ERRORS[kind], EngineError)), injector.fired  # type: ignore[arg-type]
    where = f"seed {seed}, {kind} at {injector.fired}"
    assert answers(llm) == expected, where
    for stream in streams:
        stream.close()  # interrupted before `next` did anything, it could still be read
    expect_clean(llm.engine)
    share = llm._share
    assert not share._readers and not share._departed and not share._lock.locked(), where


@pytest.mark.parametrize("lines", [False, True], ids=["calls", "lines"])
@pytest.mark.parametrize("kind", list(ERRORS))
def test_after_a_fault_anywhere_in_a_call_the_next_requests_get_their_tokens(llm, kind, lines):
    expected = answers(llm)
    for seed in range(8):
        one_call(llm, seed, kind, lines, expected)


@pytest.mark.full
@pytest.mark.parametrize("lines", [False, True], ids=["calls", "lines"])
@pytest.mark.parametrize("kind", list(ERRORS))
def test_thousands_of_steps_with_a_fault_in_each_call(llm, kind, lines):
    expected, seed = answers(llm), 1000
    first = llm.engine._recorder.num_steps
    while llm.engine._recorder.num_steps - first < STEPS:
        one_call(llm, seed, kind, lines, expected)
        seed += 1


class ThreadInjector(Injector):
    """Of an engine's thread: entered by a command that it runs."""

    def __init__(self, llm: AsyncLLM, *args, **values) -> None:
        super().__init__(*args, **values)
        self._thread = llm._thread

    def __enter__(self) -> Injector:
        self._thread.ask(lambda: sys.settrace(self._trace), 30)
        return self

    def __exit__(self, *args) -> None:
        self._thread.tell(lambda: sys.settrace(None))


def read(stream) -> tuple[tuple[int, ...], BaseException | None]:
    tokens: tuple[int, ...] = ()
    try:
        for chunk in stream:
            tokens += chunk.token_ids if not chunk.index else ()
    except BaseException as error:
        return tokens, error
    return tokens, None


def one_load(llm: AsyncLLM, seed: int, kind: str, expected: list[tuple[int, ...]]) -> None:
    rng = random.Random(f"{seed} {kind}")
    injector = ThreadInjector(llm, ERRORS[kind], rng.randrange(rng.choice([300, 9000])))
    with injector:
        streams = [llm.add(p, one) for p, one in zip(PROMPTS, PARAMS, strict=True)]
        streams[seed % 4].abort()
        for stream in streams:
            _, error = read(stream)
            assert error is None or (injector.fired and isinstance(error, EngineError)), error
    where = f"seed {seed}, {kind} at {injector.fired}"
    again = [llm.add(p, one) for p, one in zip(NEXT, PARAMS[:3], strict=True)]
    assert [read(stream) for stream in again] == [(tokens, None) for tokens in expected], where
    llm._thread.ask(lambda: expect_clean(llm._engine), 30)
    assert not llm._thread._inbox.mailboxes and not llm._thread._delivery.cursors, where
    assert llm.health().state == "idle", where


@pytest.fixture(scope="module", params=[False, True], ids=["in turns", "overlapped"])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[AsyncLLM, list[tuple[int, ...]]]]:
    with LLM("zoo/draft", config(request.param)) as model:
        expected = answers(model)
        with AsyncLLM("zoo/draft", config(request.param)) as llm:
            yield llm, expected


@pytest.mark.parametrize("kind", list(ERRORS))
def test_a_fault_in_the_engines_thread_ends_what_it_concerns_and_nothing_else(served, kind):
    llm, expected = served
    for seed in range(8):
        one_load(llm, seed, kind, expected)


@pytest.mark.full
@pytest.mark.parametrize("kind", list(ERRORS))
def test_thousands_of_steps_with_a_fault_in_each_load_of_the_thread(served, kind):
    llm, expected = served
    seed, first = 1000, llm._engine._recorder.num_steps
    while llm._engine._recorder.num_steps - first < STEPS:
        one_load(llm, seed, kind, expected)
        seed += 1


def test_a_thread_that_dies_ends_every_stream_and_says_why_ever_after(monkeypatch):
    llm = AsyncLLM("zoo/draft", config(False))
    all_added = threading.Event()

    def exits():
        # The first request begins this step; a request added after its end would be refused.
        assert all_added.wait(60)
        raise SystemExit(3)

    monkeypatch.setattr(llm._engine, "step", exits)
    streams = [llm.add(prompt, PARAMS[0]) for prompt in PROMPTS]
    all_added.set()
    errors = [read(stream)[1] for stream in streams]
    assert all(isinstance(error, EngineError) and "SystemExit" in str(error) for error in errors)
    with pytest.raises(RuntimeError, match="the engine's thread ended: SystemExit"):
        llm.add(PROMPTS[0], PARAMS[0])
    assert llm.health().state == "closed"
    llm.close()
    assert not llm._thread._thread.is_alive()
