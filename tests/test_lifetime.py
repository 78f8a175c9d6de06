"""Who may end what, and when: names used again, readers that go, threads, forks and exits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest

from minserve import LLM, AsyncLLM, EngineConfig, InvalidRequestError, SamplingParams

CONFIG = EngineConfig(dtype="float32", device="cpu").with_values(
    {"memory.kv_bytes": 4 << 20, "scheduling.max_model_len": 1024}
)
SHORT = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=900, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def llm():
    with LLM("zoo/draft", CONFIG) as model:
        yield model


@pytest.fixture
def served():
    with AsyncLLM("zoo/draft", CONFIG) as model:
        yield model


@pytest.fixture(scope="module")
def expected(llm):
    prompts = ["def f():", "import re", "x = ["]
    return {prompt: llm.generate(prompt, SHORT)[0].token_ids for prompt in prompts}


def tokens(stream) -> tuple[int, ...]:
    return sum((chunk.token_ids for chunk in stream), ())


# identity


def test_a_late_finalizer_of_an_ended_stream_leaves_the_next_request_of_that_name_alone(served):
    for _ in range(20):
        first = served.add("def f():", SHORT, request_id="same")
        chunks = iter(first)
        while next(chunks).finish_reason is None:
            pass
        second = served.add("import re", SHORT, request_id="same")
        chunks.close()
        first.abort()
        assert [chunk.finish_reason for chunk in second][-1] == "length"


def test_an_abort_by_name_ends_the_request_that_has_it_now(served):
    stream = served.add("def f():", LONG, request_id="mine")
    chunks = iter(stream)
    next(chunks)
    served.abort("mine")
    assert list(chunks)[-1].finish_reason == "abort"


@pytest.mark.parametrize("name", [[], None, 3, b"x", "", ["same"]])
def test_an_abort_of_what_is_no_name_is_refused_and_hurts_no_stream(served, name):
    stream = served.add("def f():", SHORT)
    with pytest.raises(InvalidRequestError, match="request_id"):
        served.abort(name)
    assert len(tokens(stream)) == 6


def test_an_ended_stream_stops_at_once_when_it_is_iterated_again(served):
    stream = served.add("def f():", SHORT)
    assert len(tokens(stream)) == 6
    assert list(stream) == list(stream) == []

    async def again() -> list:
        return [chunk async for chunk in stream]

    assert asyncio.run(again()) == []
    broken = served.add([10**7], SHORT)
    with pytest.raises(InvalidRequestError):
        list(broken)
    assert list(broken) == []


def test_two_readers_of_one_stream_both_come_to_its_end(served):
    stream = served.add("def f():", SHORT)
    parts: list[tuple[int, ...]] = []
    threads = [
        threading.Thread(target=lambda: parts.append(tokens(stream)), daemon=True) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert len(parts) == 2 and sum(len(part) for part in parts) == 6


# closing


def test_what_races_a_close_ends_always():
    with LLM("zoo/draft", CONFIG):  # its weights are shared
        for _ in range(25):
            model = AsyncLLM("zoo/draft", CONFIG)
            ends: list[str] = []

            def ask(model: AsyncLLM = model, ends: list[str] = ends) -> None:
                try:
                    chunks = list(model.add("def f():", LONG))
                    ends.append(chunks[-1].finish_reason)
                except RuntimeError as error:
                    assert "closed" in str(error)
                    ends.append("closed")

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            model.close()
            for thread in threads:
                thread.join(20)
            assert len(ends) == 4 and set(ends) <= {"abort", "closed"}


def test_a_question_behind_a_close_is_answered(served):
    served._thread.stop()
    with pytest.raises(RuntimeError, match="closed"):
        served._thread.ask(lambda: 1, 5)
    with pytest.raises(RuntimeError, match="closed"):
        served.add("x", SHORT)
    assert served.health().state == "closed"


def test_one_dropped_without_close_is_collected_with_its_thread_and_memory():
    model = AsyncLLM("zoo/draft", CONFIG)
    assert len(tokens(model.add("def f():", SHORT))) == 6
    engine = weakref.ref(model._engine)
    threads = [
        t for t in threading.enumerate() if t.name in ("minserve-engine", "minserve-watchdog")
    ]
    assert len(threads) >= 2
    del model
    deadline = time.monotonic() + 20
    while (engine() is not None or any(t.is_alive() for t in threads)) and (
        time.monotonic() < deadline
    ):
        gc.collect()
        time.sleep(0.02)
    assert engine() is None
    assert not any(thread.is_alive() for thread in threads)


def test_a_stream_keeps_its_engine_until_it_was_read():
    stream = AsyncLLM("zoo/draft", CONFIG).add("def f():", SHORT)
    gc.collect()
    assert len(tokens(stream)) == 6


SCRIPT = """
import sys
from minserve import AsyncLLM, EngineConfig, SamplingParams
llm = AsyncLLM("zoo/draft", EngineConfig(dtype="float32", device="cpu"), progress=False)
streams = [llm.add("def f():", SamplingParams(max_tokens=900, ignore_eos=True)) for _ in range(8)]
next(iter(streams[0]))
{end}
"""


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit(7)", 7), ("raise ValueError('x')", 1), ("pass", 0)]
)
def test_an_exit_while_requests_run_keeps_its_code(end, code):
    script = SCRIPT.format(end=end)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert done.returncode == code, done.stderr.decode()[-2000:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_a_fork_there_is_a_sentence_and_no_hang(llm, served):
    for ask in (
        lambda: llm.generate("x", SHORT),
        lambda: llm.stream("x", SHORT),
        lambda: served.add("x", SHORT),
        lambda: served.pin([1] * 64),
    ):
        child = os.fork()
        if not child:
            code = 1
            try:
                ask()
            except RuntimeError as error:
                code = 42 if "forked" in str(error) else 2
            finally:
                os._exit(code)
        deadline = time.monotonic() + 20
        status = 0
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.01)
        else:
            os.kill(child, 9)
        assert os.waitstatus_to_exitcode(status) == 42
    assert llm.generate("def f():", SHORT)[0].finish_reason == "length"


# threads and streams of an LLM


def test_streams_run_side_by_side_and_a_call_to_generate_beside_them(llm, expected):
    streams = {prompt: llm.stream(prompt, SHORT) for prompt in expected}
    found = {prompt: next(stream).token_ids for prompt, stream in streams.items()}
    whole = llm.generate(list(expected), SHORT)
    assert [output.token_ids for output in whole] == list(expected.values())
    for prompt, stream in streams.items():
        found[prompt] += tokens(stream)
    assert found == expected
    assert not llm.engine.has_work and llm.engine.memory.pool.num_owned == 0


def test_a_stream_may_be_begun_in_one_thread_and_ended_in_another(llm, expected):
    stream = llm.stream("def f():", SHORT)
    first = next(stream).token_ids
    rest: list[tuple[int, ...]] = []
    other = threading.Thread(target=lambda: rest.append(tokens(stream)))
    other.start()
    other.join(30)
    assert first + rest[0] == expected["def f():"]
    left = llm.stream("def f():", LONG)
    next(left)
    other = threading.Thread(target=left.close)
    other.start()
    other.join(30)
    assert not llm.engine.has_work
    assert llm.generate("def f():", SHORT)[0].token_ids == expected["def f():"]


def test_what_another_caller_delivers_behind_a_step_is_not_lost(llm, expected):
    share, hold = llm._share, llm._share.hold
    mine, other = llm.stream("def f():", SHORT), llm.stream("import re", SHORT)
    between = [False]

    @contextlib.contextmanager
    def hold_and_let_the_other_go_on():
        with hold() as engine:
            yield engine
        if not between[0]:  # the engine is free, and the caller has not looked at its chunks yet
            between[0] = True
            found.extend(chunk.token_ids for chunk in itertools.islice(other, 1))
            between[0] = False

    found: list[tuple[int, ...]] = []
    share.hold = hold_and_let_the_other_go_on
    try:
        assert tokens(mine) == expected["def f():"]
    finally:
        del share.hold
    assert sum(found, ()) + tokens(other) == expected["import re"]


def test_threads_that_call_generate_take_turns(llm, expected):
    results: dict[str, tuple[int, ...]] = {}

    def ask(prompt: str) -> None:
        for _ in range(5):
            results[prompt] = llm.generate(prompt, SHORT, progress=False)[0].token_ids

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == expected


def test_a_stream_dropped_by_the_garbage_collector_in_the_midst_of_a_step_stops_nothing(
    llm, expected
):
    loops = []

    class Cycle:
        def __init__(self) -> None:
            self.me = self
            self.stream = llm.stream("while True:", LONG)
            next(self.stream)

    Cycle()
    submit = llm.engine._runner.submit

    def submit_and_collect(batch):
        loops.append(gc.collect())  # while the engine's lock is held by this very thread
        return submit(batch)

    llm.engine._runner.submit = submit_and_collect
    try:
        assert llm.generate("def f():", SHORT)[0].token_ids == expected["def f():"]
    finally:
        del llm.engine._runner.submit
    assert loops
    llm.generate("x", SHORT)
    assert not llm.engine.has_work


# a step that does not end


def test_a_stuck_step_is_reported_with_where_it_stands(caplog):
    with AsyncLLM("zoo/draft", CONFIG, watchdog_s=0.2) as model:
        assert model.health().state == "idle"
        submit, go_on = model._engine._runner.submit, threading.Event()

        def stuck(batch):
            go_on.wait(30)
            return submit(batch)

        model._engine._runner.submit = stuck
        with caplog.at_level(logging.ERROR, logger="minserve"):
            stream = model.add("def f():", SHORT)
            deadline = time.monotonic() + 20
            while "taken more than" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.02)
            health = model.health()
        go_on.set()
        assert "in stuck" in caplog.text
        assert health.state == "stuck" and health.step_s > 0.2
        assert len(tokens(stream)) == 6
        assert model.health().state in ("idle", "working")
