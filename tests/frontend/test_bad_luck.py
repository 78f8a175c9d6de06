"""Callers with bad luck: interrupts, closed event loops, names taken, a stderr that cannot be
written. Each has a bystander, whose tokens do not change."""

from __future__ import annotations

import asyncio
import decimal
import fractions
import gc
import io
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import Future

import numpy as np
import pytest

from minserve import LLM, AsyncLLM, ConfigError, EngineConfig, EngineError, SamplingParams
from minserve.frontend import progress
from minserve.memory import KVCache

CONFIG = EngineConfig(dtype="float32", device="cpu").with_values(
    {"memory.kv_bytes": 4 << 20, "memory.prefix_cache": "hash"}
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
    return {each: llm.generate(each, SHORT)[0].token_ids for each in ("def f():", "import re")}


@pytest.fixture(autouse=True)
def audited(request):
    """Whatever a test did, no request is left and the books agree."""
    yield
    if "llm" in request.fixturenames:
        engine = request.getfixturevalue("llm").engine
        assert not engine.has_work and engine.memory.pool.num_owned == 0
        engine.audit()


def tokens(stream) -> tuple[int, ...]:
    return sum((chunk.token_ids for chunk in stream), ())


def wait_until(true, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(true())


# signal handlers, which run in the middle of a call


def test_a_call_between_two_steps_of_another_in_the_same_thread_is_refused(llm, expected):
    share, said, bystander = llm._share, [], llm.stream("import re", SHORT)
    advance = share.advance

    def advance_and_call():
        advance()
        if not said:
            with pytest.raises(RuntimeError, match="signal handler") as caught:
                llm.generate("x", SHORT)
            said.append(str(caught.value))

    first = next(bystander).token_ids
    share.advance = advance_and_call
    try:
        (output,) = llm.generate("def f():", SHORT)
    finally:
        del share.advance
    assert said and output.token_ids == expected["def f():"]
    assert first + tokens(bystander) == expected["import re"]
    assert llm.generate("def f():", SHORT)[0].token_ids == expected["def f():"]


@pytest.mark.parametrize("step", [1, 3])
def test_a_stream_closed_in_its_own_step_ends_and_hurts_no_other(llm, expected, step):
    stream, bystander = llm.stream("def f():", LONG), llm.stream("import re", SHORT)
    submit, steps = llm.engine._runner.submit, []

    def submit_and_close(batch):
        steps.append(1)
        if len(steps) == step:
            stream.close()
            stream.close()
        return submit(batch)

    first = next(bystander).token_ids
    llm.engine._runner.submit = submit_and_close
    try:
        assert len(tokens(stream)) <= step + 1
    finally:
        del llm.engine._runner.submit
    assert first + tokens(bystander) == expected["import re"]


def test_an_interrupt_while_a_pin_is_made_pins_nothing(served):
    ids = list(range(1, 65))
    served.pin(ids).unpin()
    pins, go_on = served._engine.memory.pins, threading.Event()
    ask, thread = served._thread.ask, threading.main_thread().ident

    def ask_and_interrupt(what, timeout_s, **undo):
        def late():
            found = what()
            if undo:  # the command that pins
                signal.pthread_kill(thread, signal.SIGINT)
                go_on.wait(30)
            return found

        return ask(late, timeout_s, **undo)

    served._thread.ask = ask_and_interrupt
    with pytest.raises(KeyboardInterrupt):
        served.pin(ids)
    go_on.set()
    del served._thread.ask
    assert wait_until(lambda: not served._thread.ask(lambda: pins.num_blocks(0), 30))
    served.pin(ids).unpin()


def test_an_interrupt_after_the_answer_undoes_it(served, monkeypatch):
    undone, result, real = [], [], Future.result

    def interrupted(self, timeout=None):
        result.append(real(self, timeout))
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        served._thread.ask(lambda: 7, 30, undone.append)
    monkeypatch.undo()
    assert result == [7] and wait_until(lambda: undone == [7])


# readers that go


def test_a_reader_whose_event_loop_was_closed_aborts_when_it_is_dropped(served, expected):
    loop = asyncio.new_event_loop()

    async def read_one():
        reader = served.add("def f():", LONG).__aiter__()
        await reader.__anext__()
        return reader

    reader = loop.run_until_complete(read_one())
    loop.close()
    (request,) = served._engine.live_requests()
    bystander = served.add("import re", SHORT)
    del reader
    assert tokens(bystander) == expected["import re"]
    assert wait_until(lambda: not served._engine.has_work)
    assert request.finish_reason == "abort"


def test_a_cancelled_reader_aborts_its_request_and_no_other(served, expected):
    async def scenario():
        reader = served.add("def f():", LONG).__aiter__()
        await reader.__anext__()
        (request,) = served._engine.live_requests()
        bystander = served.add("import re", SHORT)

        async def read():
            async for _ in reader:
                pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(StopAsyncIteration):
            await reader.__anext__()
        return request, sum([chunk.token_ids async for chunk in bystander], ())

    request, other = asyncio.run(scenario())
    assert other == expected["import re"]
    assert wait_until(lambda: request.finish_reason == "abort")


# names


def test_a_request_without_a_name_never_gets_a_name_that_is_taken(served, expected):
    taken = [served.add("def f():", LONG, request_id=f"request-{index}") for index in (0, 1, 3)]
    others = [served.add("import re", SHORT) for _ in range(3)]
    assert [tokens(stream) for stream in others] == [expected["import re"]] * 3
    for stream in taken:
        stream.abort()


def test_a_name_with_methods_of_its_own_hurts_no_other_caller(served, expected):
    class Evil(str):
        def __eq__(self, other):
            raise OSError("compared")

        def __hash__(self):
            raise OSError("hashed")

    evil = served.add("def f():", LONG, request_id=Evil("evil"))
    mine = served.add("def f():", LONG, request_id="mine")
    served.abort("mine")
    assert list(mine)[-1].finish_reason == "abort"
    assert tokens(served.add("import re", SHORT)) == expected["import re"]
    served.abort("evil")
    assert list(evil)[-1].finish_reason == "abort"
    assert not served._thread._inbox.mailboxes


def test_a_name_used_twice_is_refused_and_the_first_goes_on(served, expected):
    gate = threading.Event()
    served._thread.tell(lambda: gate.wait(30))
    first = served.add("import re", SHORT, request_id="same")
    second = served.add("def f():", SHORT, request_id="same")
    gate.set()
    with pytest.raises(ValueError, match="same"):
        list(second)
    assert tokens(first) == expected["import re"]


# times to wait

SECONDS = [5, 5.0, np.float32(5), np.array(5.0), decimal.Decimal(5), fractions.Fraction(5), None]


@pytest.mark.parametrize("seconds", SECONDS, ids=repr)
def test_every_number_that_is_accepted_as_a_time_is_one(seconds, expected):
    model = AsyncLLM("zoo/draft", CONFIG, watchdog_s=seconds)
    model.pin([1] * 64, timeout_s=seconds).unpin()
    assert tokens(model.add("import re", SHORT)) == expected["import re"]
    names = [t.name for t in threading.enumerate() if t.is_alive()]
    assert ("minserve-watchdog" in names) is (seconds is not None)
    model.close(timeout_s=seconds)
    assert not model._thread._thread.is_alive()


@pytest.mark.parametrize("seconds", [True, "5", -1, float("nan"), [5]], ids=repr)
def test_what_is_no_time_is_refused(served, seconds):
    with pytest.raises(ConfigError, match="timeout_s"):
        served.pin([1] * 64, timeout_s=seconds)
    with pytest.raises(ConfigError, match="timeout_s"):
        served.close(timeout_s=seconds)
    assert served.health().state == "idle"


def test_a_pin_that_comes_too_late_leaves_no_request(served):
    def late(*args, **kwargs):
        raise EngineError("late")

    served._thread.ask = late
    with pytest.raises(EngineError):
        served.pin([1] * 64, timeout_s=1)
    del served._thread.ask
    assert wait_until(lambda: not served._engine.has_work)


# the end


def test_what_was_closed_holds_no_weights_and_no_pages_while_its_name_is_still_in_use(expected):
    model = LLM("zoo/draft", CONFIG)
    stream, _pinned = model.stream("def f():", LONG), model.pin([1] * 64)
    next(stream)
    engine = model.engine
    parts = (engine, engine._runner, engine.memory, engine.memory._store)
    assert isinstance(parts[-1], KVCache)
    refs = [weakref.ref(part) for part in parts]
    del engine, parts
    model.close()
    gc.collect()
    assert [ref() for ref in refs] == [None] * 4
    assert model.encode("def f():") and model.tokenizer is not None
    with pytest.raises(RuntimeError, match="closed"):
        model.generate("def f():", SHORT)
    assert [chunk.finish_reason for chunk in stream] == ["abort"]


def test_a_thread_whose_last_aborts_fail_still_closes_the_engine(monkeypatch):
    model = AsyncLLM("zoo/draft", CONFIG)
    engine, closed = model._engine, []
    close, abort_all = engine.memory.close, engine.abort_all

    def fails_once():
        engine.abort_all = abort_all
        raise MemoryError("no memory left")

    engine.abort_all = fails_once
    engine.memory.close = lambda: (closed.append(1), close())
    stream = model.add("def f():", LONG)
    next(iter(stream))
    model.close()
    assert closed == [1] and not model._thread._thread.is_alive()


# a stderr that cannot be written


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


class Interrupted(io.StringIO):
    def write(self, text):
        raise KeyboardInterrupt


@pytest.fixture
def at_once(monkeypatch):
    """Bars are drawn without delay."""
    init = progress.tqdm.__init__

    def impatient(self, *args, **values):
        init(self, *args, **{**values, "delay": 1e-9, "mininterval": 0})

    monkeypatch.setattr(progress.tqdm, "__init__", impatient)


def expect_from_another_thread(llm, expected):
    found = []
    ask = threading.Thread(
        target=lambda: found.append(llm.generate("import re", SHORT)[0].token_ids), daemon=True
    )
    ask.start()
    ask.join(20)
    assert found == [expected["import re"]]


@pytest.mark.parametrize("stderr", [None, Full(), object()], ids=["none", "full", "object"])
def test_a_bar_that_cannot_be_drawn_ends_no_call(llm, expected, monkeypatch, at_once, stderr):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stderr)
        outputs = llm.generate(list(expected), SHORT, progress=True)
    assert [output.token_ids for output in outputs] == list(expected.values())
    expect_from_another_thread(llm, expected)


def test_an_interrupt_while_a_bar_is_drawn_stops_no_other_thread(
    llm, expected, monkeypatch, at_once
):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            llm.generate(list(expected), SHORT, progress=True)
    expect_from_another_thread(llm, expected)


def test_a_bar_shows_how_many_requests_have_ended(llm, expected, monkeypatch, at_once):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", shown := io.StringIO())
        llm.generate(list(expected), SHORT, progress=True)
        assert "2/2" in shown.getvalue()
        patched.setattr(sys, "stderr", shown := io.StringIO())
        llm.generate(list(expected), SHORT, progress=False)
        assert not shown.getvalue()


# errors in a call


def test_a_call_ends_with_its_first_failure_and_does_not_complete_the_others(llm, expected):
    (token,) = llm.tokenizer.encode("the", add_special_tokens=False)
    banned = SamplingParams(min_tokens=1, bad_words=["the"], allowed_token_ids=[0, token])
    with pytest.raises(EngineError, match="no token was left"):
        llm.generate([[5, 6], [7, 8]], [banned, LONG])
    assert len(llm.trace.steps) < 10
    assert llm.generate("import re", SHORT)[0].token_ids == expected["import re"]


def test_steps_that_fail_and_end_no_request_end_the_call(llm, expected):
    found = []

    def fails():
        raise OSError("broken")

    def ask():
        with pytest.raises(OSError, match="broken"):
            llm.generate("def f():", SHORT)
        found.append(True)

    llm.engine.step = fails
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(20)
    del llm.engine.step
    asking.join(20)
    assert found
    assert llm.generate("import re", SHORT)[0].token_ids == expected["import re"]
