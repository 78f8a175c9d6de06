"""The engine behind a thread: streams, aborts, errors that reach the caller they concern."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from minserve import LLM, AsyncLLM, EngineConfig, InvalidRequestError, SamplingParams
from minserve.async_llm import EngineError

CONFIG = EngineConfig(dtype="float32", device="cpu")
GREEDY = SamplingParams(max_tokens=10, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=1500, temperature=0, ignore_eos=True)


@pytest.fixture
def llm():
    with AsyncLLM("zoo/base", CONFIG) as model:
        yield model


@pytest.fixture(scope="module")
def expected():
    with LLM("zoo/base", CONFIG) as model:
        return {p: model.generate(p, GREEDY)[0].text for p in ("def f():", "import re", "x = [")}


def text(stream):
    return "".join(chunk.text for chunk in stream)


def test_streams_from_many_threads_give_each_its_own_text(llm, expected):
    results: dict[str, str] = {}

    def ask(prompt: str) -> None:
        results[prompt] = text(llm.add(prompt, GREEDY))

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == expected


def test_asyncio_readers_share_the_loop(llm, expected):
    async def ask(prompt: str) -> str:
        return "".join([chunk.text async for chunk in llm.add(prompt, GREEDY)])

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(prompt) for prompt in expected))

    assert asyncio.run(ask_all()) == list(expected.values())


def test_abort_ends_a_stream_and_frees_its_pages(llm):
    stream = llm.add("def endless():", LONG)
    chunks = iter(stream)
    next(chunks)
    stream.abort()
    rest = list(chunks)
    assert rest[-1].finish_reason == "abort"
    assert text(llm.add("a", GREEDY)) is not None
    assert llm._engine.memory.pool.num_owned == 0


def test_a_reader_who_leaves_aborts_the_request(llm):
    chunks = iter(llm.add("def endless():", LONG))
    next(chunks)
    chunks.close()
    deadline = time.monotonic() + 30
    while llm._engine.has_work and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not llm._engine.has_work


def test_a_bad_request_is_raised_by_its_stream_and_hurts_no_other(llm, expected):
    good = llm.add("def f():", GREEDY)
    bad = llm.add([10**7], GREEDY)
    with pytest.raises(InvalidRequestError, match="outside the vocabulary"):
        list(bad)
    assert text(good) == expected["def f():"]


def test_an_engine_error_reaches_the_readers_and_the_engine_goes_on(llm, expected):
    submit = llm._engine._runner.submit
    failures = iter([MemoryError("no memory left")])

    def failing(batch):
        for error in failures:
            raise error
        return submit(batch)

    llm._engine._runner.submit = failing
    with pytest.raises(EngineError, match="no memory left") as caught:
        list(llm.add("def f():", GREEDY))
    assert isinstance(caught.value.__cause__, MemoryError)
    assert text(llm.add("def f():", GREEDY)) == expected["def f():"]


def test_closing_ends_open_streams_with_abort():
    llm = AsyncLLM("zoo/base", CONFIG)
    stream = iter(llm.add("def endless():", LONG))
    next(stream)
    llm.close()
    assert list(stream)[-1].finish_reason == "abort"
    with pytest.raises(RuntimeError, match="closed"):
        llm.add("x", GREEDY)


def test_n_samples_share_a_stream(llm):
    params = SamplingParams(max_tokens=5, temperature=1.0, n=3, seed=3, ignore_eos=True)
    chunks = list(llm.add("def f():", params))
    assert {chunk.index for chunk in chunks} == {0, 1, 2}
    assert sum(chunk.finish_reason == "length" for chunk in chunks) == 3
