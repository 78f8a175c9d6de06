"""What readers of the code found by walking through it: streams, interrupts, errors and pins of one
caller that reached another. Each was wrong once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import threading

import pytest

from minserve import LLM, AsyncLLM, EngineConfig, EngineError, InvalidRequestError, SamplingParams
from minserve.clock import WallClock
from minserve.frontend.outputs import StreamCursor

CONFIG = EngineConfig(dtype="float32", device="cpu").with_values(
    {"memory.kv_bytes": 4 << 20, "memory.prefix_cache": "radix", "scheduling.max_model_len": 1024}
)
OVERLAPPED = CONFIG.with_values({"scheduling.async_scheduling": True})
SHORT = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
LONG = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)


@pytest.fixture
def llm():
    with LLM("zoo/draft", CONFIG, progress=False) as model:
        yield model


@pytest.fixture
def served():
    with AsyncLLM("zoo/draft", CONFIG, progress=False) as model:
        yield model


class Panic(BaseException):
    """As pyo3's PanicException."""


def once(function, error: BaseException, at: int = 0):
    """The function, raising the error at one of its calls."""
    calls: list[None] = []

    def wrapped(*args, **values):
        calls.append(None)
        if len(calls) == at + 1:
            raise error
        return function(*args, **values)

    return wrapped


def result_of(what, seconds: float = 10.0):
    """What `what` returns or raises, in a thread of its own; fails where it hangs."""
    found: list = []

    def run_it() -> None:
        try:
            found.append(what())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run_it, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "hangs"
    return found[0]


# -- streams ---------------------------------------------------------------------------------------


def test_a_stream_keeps_its_last_chunk_where_another_threads_step_ends_it(llm, monkeypatch):
    mine, other = llm.stream("a", SHORT), llm.stream("b", LONG)
    chunks = [next(mine)]
    next(other)
    ended, go_on = threading.Event(), threading.Event()
    step, hold = llm.engine.step, llm._share.hold

    def slow():
        trace = step()
        if trace.num_finished and not ended.is_set():
            ended.set()
            go_on.wait(10)  # the step is over, its chunks are not delivered
        return trace

    def waits():
        if ended.is_set():
            go_on.set()  # this thread is about to wait for the other one
        return hold()

    monkeypatch.setattr(llm.engine, "step", slow)
    thread = threading.Thread(target=lambda: list(other), daemon=True)
    thread.start()
    assert ended.wait(10)
    monkeypatch.setattr(llm._share, "hold", waits)
    chunks += mine
    go_on.set()
    thread.join(10)
    assert sum(len(chunk.token_ids) for chunk in chunks) == 6
    assert chunks[-1].finish_reason == "length"


def test_two_tasks_that_read_one_stream_both_come_to_its_end(served):
    async def main() -> list[int]:
        stream = served.add("a", LONG)

        async def read() -> int:
            return sum([len(chunk.token_ids) async for chunk in stream])

        tasks = [asyncio.create_task(read()) for _ in range(2)]
        done, left = await asyncio.wait(tasks, timeout=10)
        for task in left:
            task.cancel()
        return [task.result() for task in done]

    found = asyncio.run(main())
    assert len(found) == 2 and sum(found) == 60


def test_what_is_wrong_with_a_streamed_request_is_raised_before_the_iteration(llm):
    with pytest.raises(InvalidRequestError, match="max_n"):
        llm.stream("a", SamplingParams(n=10**6))


def test_two_callers_are_not_raised_one_exception(llm, monkeypatch):
    mine, other = llm.stream("a", SHORT), llm.stream("b", SHORT)
    next(mine), next(other)
    runner, error = llm.engine._runner, RuntimeError("of the batch")
    monkeypatch.setattr(runner, "submit", once(runner.submit, error))
    caught = []
    for chunks in (mine, other):
        with pytest.raises(EngineError, match="of the batch") as info:
            list(chunks)
        caught.append(info.value)
    assert caught[0] is not caught[1]
    assert caught[0].__cause__ is caught[1].__cause__ is error


def test_a_streams_text_that_fails_is_not_told_to_another_caller(llm, monkeypatch):
    chunks = llm.stream("a", LONG)
    next(chunks)
    readers = llm._share._readers.values()
    mine = {id(cursor) for reader in readers for cursor in reader.cursors.values()}
    advance = StreamCursor.advance

    def fails(self, engine, request):
        if id(self) in mine:
            raise RuntimeError("no text")
        return advance(self, engine, request)

    monkeypatch.setattr(StreamCursor, "advance", fails)
    assert llm.generate("b", SHORT, progress=False)[0].finish_reason == "length"
    with pytest.raises(EngineError, match="no text"):
        list(chunks)
    assert not llm._share._readers and not llm.engine.has_requests


def test_a_text_that_cannot_be_decoded_at_the_end_ends_one_request(llm, monkeypatch):
    tokenizer = type(llm.tokenizer)
    broken = once(tokenizer.decode, Panic("a character that is none"), at=1)
    monkeypatch.setattr(tokenizer, "decode", lambda *args, **values: broken(*args, **values))
    outputs = llm.generate(["a", "b", "c"], SHORT, progress=False, errors="return")
    assert [output.finish_reason for output in outputs] == ["length", "error", "length"]


# -- interrupts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupt_as_the_engine_is_taken_leaves_it_free(llm, monkeypatch, at):
    get_ident = once(threading.get_ident, KeyboardInterrupt(), at)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("minserve.frontend.share.threading.get_ident", get_ident)
        with llm._share.hold():
            pass
    assert not llm._share._lock.locked()
    assert llm.generate("a", SHORT, progress=False)[0].finish_reason == "length"


def test_an_interrupt_as_the_engine_is_left_leaves_it_free(llm, monkeypatch):
    tell = llm._share._tell_waiting
    monkeypatch.setattr(llm._share, "_tell_waiting", once(tell, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        llm.generate("a", SHORT, progress=False)
    assert not llm._share._lock.locked()
    assert llm.generate("a", SHORT, progress=False)[0].finish_reason == "length"


def test_an_interrupt_while_a_departed_stream_is_told_of_does_not_lose_it(llm, monkeypatch):
    chunks = llm.stream("a", LONG)
    next(chunks)
    abort = llm.engine.abort_requests
    monkeypatch.setattr(llm.engine, "abort_requests", once(abort, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        chunks.close()
    assert llm.engine.has_requests
    llm.generate("b", SHORT, progress=False)
    assert not llm._share._readers and not llm.engine.has_requests


def test_a_close_by_a_signal_handler_in_the_midst_of_a_step_ends_the_call(llm, monkeypatch):
    runner = llm.engine._runner
    submit, handled = runner.submit, []

    def interrupted(batch):
        if not handled:
            signal.raise_signal(signal.SIGTERM)  # handled before the next line
            assert handled
        return submit(batch)

    def close(*args) -> None:
        handled.append(args)
        llm.close()

    monkeypatch.setattr(runner, "submit", interrupted)
    before = signal.signal(signal.SIGTERM, close)
    try:
        with pytest.raises(RuntimeError, match="closed"):
            llm.generate("a", LONG, progress=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(handled) == 1


# -- errors of one caller, of none, and for good ---------------------------------------------------


def test_a_departed_streams_error_is_not_told_to_the_next_caller(monkeypatch):
    with LLM("zoo/draft", OVERLAPPED, progress=False) as llm:
        chunks = llm.stream("a", LONG)
        next(chunks)
        runner, calls = llm.engine._runner, []
        failing = once(runner.collect, RuntimeError("of the one that left"))

        def collect(handle):
            calls.append(handle)
            return failing(handle)

        monkeypatch.setattr(runner, "collect", collect)
        del chunks  # it leaves word, and a step of it is in flight
        assert not calls and llm.engine.has_requests
        assert llm.generate("b", SHORT, progress=False)[0].finish_reason == "length"
        assert calls


def test_a_close_over_a_failing_step_closes():
    llm = LLM("zoo/draft", OVERLAPPED, progress=False)
    chunks = llm.stream("a", LONG)
    next(chunks)

    def fails(handle):
        raise RuntimeError("the device is gone")

    llm.engine._runner.collect = fails
    with contextlib.suppress(RuntimeError):
        llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("b", SHORT, progress=False)


@pytest.mark.parametrize("num_calls", [20, 25, 30, 35, 40, 45])
def test_a_clock_that_fails_for_good_ends_the_call(num_calls):
    stop = threading.Event()

    class Stopping(WallClock):
        left = num_calls

        def now(self) -> float:
            self.left -= 1
            if stop.is_set():
                raise SystemExit  # so that the thread of a failing test ends
            if self.left < 0:
                raise RuntimeError("no time")
            return super().now()

    llm = LLM("zoo/draft", CONFIG, progress=False, clock=Stopping())
    try:
        assert result_of(lambda: llm.generate(["a", "b"], SHORT, progress=False, errors="return"))
    finally:
        stop.set()


@pytest.mark.parametrize("value", [0, -1, float("nan"), "x"])
def test_a_watchdog_time_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="watchdog_s"):
        AsyncLLM("zoo/draft", CONFIG, progress=False, watchdog_s=value).close()


class Unchecked(SamplingParams):
    """Parameters that escaped their checks."""

    def __post_init__(self) -> None:
        pass


@pytest.mark.parametrize("count", [-1, 0])
def test_params_that_escaped_their_checks_leave_no_name_behind(llm, count):
    with pytest.raises(InvalidRequestError):
        llm.generate("x", Unchecked(n=count), progress=False)
    with pytest.raises(InvalidRequestError):
        llm.stream("x", Unchecked(n=count))
    assert not llm.engine._requests


# -- pins that come too late -----------------------------------------------------------------------

DOCUMENT = "import os\n" * 20


@pytest.mark.parametrize("begun", [False, True])
def test_a_pin_that_gave_up_waiting_pins_nothing(served, monkeypatch, begun):
    served.pin(DOCUMENT).unpin()  # computed: from here on it takes one command
    memory, thread = served._engine.memory, served._thread
    pin, inside, go_on, pinned = memory.pins.add, threading.Event(), threading.Event(), []

    def slow(*args):
        inside.set()
        assert go_on.wait(20)
        pinned.append(pin(*args))
        return pinned[-1]

    monkeypatch.setattr(memory.pins, "add", slow)
    if not begun:  # the engine's thread is busy with something else
        check = threading.Event()
        ask = thread.ask

        def busy(what, timeout_s, undo=None):
            if undo is None:
                return ask(what, timeout_s)  # the check before the pin
            thread.tell(lambda: check.set() or go_on.wait(20))
            assert check.wait(10)
            return ask(what, timeout_s, undo)

        monkeypatch.setattr(thread, "ask", busy)
    with pytest.raises(EngineError, match="no answer within"):
        served.pin(DOCUMENT, timeout_s=0.3)
    assert inside.is_set() == begun
    go_on.set()
    assert thread.ask(lambda: memory.pins.num_blocks(), 10) == 0
    assert len(pinned) == begun


# -- the garbage collector -------------------------------------------------------------------------
# A hang inside gc.collect() stops all collection in the process: these two stand last.


def in_a_cycle(chunks) -> None:
    next(chunks)
    cycle = [chunks]
    cycle.append(cycle)


def test_a_stream_collected_while_the_trace_is_read_does_not_stop_the_reader(llm, monkeypatch):
    from minserve.trace import run

    real, collected = run.TraceSnapshot, []

    def snapshot(*args, **values):
        monkeypatch.setattr(run, "TraceSnapshot", real)
        collected.append(gc.collect())  # as it may happen in any allocation
        return real(*args, **values)

    gc.disable()
    try:
        in_a_cycle(llm.stream("a", LONG))
        monkeypatch.setattr(run, "TraceSnapshot", snapshot)
        assert llm.engine.has_requests
        assert result_of(lambda: llm.trace.snapshot()).totals.steps
        assert collected
    finally:
        gc.enable()
    llm.generate("b", SHORT, progress=False)
    assert not llm._share._readers and not llm.engine.has_requests


def test_a_stream_collected_while_a_command_is_posted_does_not_stop_the_door(served, monkeypatch):
    from minserve.frontend.thread import inbox

    real, collected = inbox.Command, []

    def make(*values):
        monkeypatch.setattr(inbox, "Command", real)
        collected.append(gc.collect())  # as it may happen in any allocation
        return real(*values)

    gc.disable()
    try:
        in_a_cycle(iter(served.add("a", LONG)))
        monkeypatch.setattr(inbox, "Command", make)
        assert result_of(lambda: len(list(served.add("b", SHORT)))) == 6
        assert collected
    finally:
        gc.enable()
