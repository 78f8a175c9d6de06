"""Mutants made by hand that no test noticed, each killed by a test here: the checks of front doors,
the handling of errors, streams and the engine's thread."""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import threading

import pytest
from engine.fakes import make_engine, oracle, run, tiny_spec

from minserve import LLM, AsyncLLM
from minserve.config import EngineConfig, resolve
from minserve.engine.admission import check_request
from minserve.frontend.thread.mailbox import Mailbox
from minserve.frontend.thread.wakeups import Wakeups
from minserve.inputs.conversations import parse_conversations
from minserve.inputs.prompts import parse_prompt, parse_prompts
from minserve.memory import IntegrityError
from minserve.request import InvalidRequestError, Request, SamplingParams
from minserve.sampling import make_masks, prepare_bad_words
from minserve.tokenizer import TextStream

GREEDY = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)


# -- params, checks --------------------------------------------------------------------------------


def test_equal_biases_and_sets_are_one_value_in_one_order_however_they_were_written():
    first = SamplingParams(logit_bias={7: 1.0, 3: -1.0}, stop_token_ids={40, 7, 3, 999})
    second = SamplingParams(logit_bias={3: -1.0, 7: 1.0}, stop_token_ids=[3, 7, 40, 999])
    assert repr(first) == repr(second)
    assert list(first.logit_bias) == [3, 7] and first.stop_token_ids == (3, 7, 40, 999)


# -- prompts ---------------------------------------------------------------------------------------


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_a_message_is_as_deep_as_it_may_be_and_no_deeper():
    # The message itself is the first level.
    parse_conversations([{"role": "user", "content": "a", "extra": nested(15)}])
    with pytest.raises(InvalidRequestError, match="nested more than 16 levels"):
        parse_conversations([{"role": "user", "content": "a", "extra": nested(16)}])


def test_the_items_of_a_messages_lists_count_like_characters():
    message = {"role": "user", "content": "a", "extra": [0] * 100}
    parse_conversations([message], 120)
    with pytest.raises(InvalidRequestError, match="more than the 90 characters"):
        parse_conversations([message], 90)


def test_a_prompt_may_have_exactly_as_many_ids_as_allowed_and_a_call_more_prompts_than_that():
    assert parse_prompt([1] * 100, 100).token_ids == [1] * 100
    with pytest.raises(InvalidRequestError, match="101 items"):
        parse_prompt([1] * 101, 100)
    assert len(parse_prompts(["a"] * 300, 100)) == 300


# -- admission -------------------------------------------------------------------------------------


def admit(params: SamplingParams, prompt: list[int], most: int, **values) -> SamplingParams:
    config = resolve(EngineConfig().with_values({"device": "cpu", **values}), tiny_spec())
    return check_request("r", prompt, params, config, most, True)


def test_a_prompt_that_fills_the_pool_leaves_no_room_for_the_one_token_that_it_asks_for():
    free = SamplingParams(max_tokens=None)
    admit(free, [1] * 9, 10)
    with pytest.raises(InvalidRequestError, match="11 tokens can never fit"):
        admit(free, [1] * 10, 10)


def test_every_sample_counts_its_own_log_probabilities():
    values = {"admission.max_logprob_entries": 100}
    admit(SamplingParams(max_tokens=10, logprobs=10, n=1), [1], 128, **values)
    with pytest.raises(InvalidRequestError, match="200 log probabilities"):
        admit(SamplingParams(max_tokens=10, logprobs=10, n=2), [1], 128, **values)


# -- masks -----------------------------------------------------------------------------------------


class Table:
    """A tokenizer that knows what it was told, and nothing else."""

    def __init__(self, **ids: list[int]) -> None:
        self._ids = {text.replace("_", " "): each for text, each in ids.items()}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._ids[text]


def test_a_bad_word_is_not_completed_by_tokens_of_the_prompt():
    params = SamplingParams(bad_words=["abc"])
    (mask,) = make_masks(params, Table(abc=[1, 2, 3], _abc=[9, 8]))
    request = Request("r", [5, 1], params, 0.0, 0, token_ids=[5, 1, 2])
    assert list(mask.at(request, request.token_ids).banned) == []
    written = Request("r", [5], params, 0.0, 0, token_ids=[5, 1, 2])
    assert list(written_mask(mask, written)) == [3]


def written_mask(mask, request):
    return mask.at(request, request.token_ids).banned


@pytest.mark.parametrize("spaced", [[1, 7], [6, 2], [6, 7, 8]])
def test_a_word_is_banned_as_it_begins_a_text_and_as_it_follows_a_space(spaced):
    table = Table(ab=[1, 2], _ab=spaced)
    for word in ("ab", " ab"):
        found = prepare_bad_words(SamplingParams(bad_words=[word]), table)
        assert found == ((1, 2), tuple(spaced))


def test_a_word_that_a_space_does_not_change_is_banned_once():
    same = Table(ab=[1, 2], _ab=[1, 2])
    assert prepare_bad_words(SamplingParams(bad_words=["ab", " ab"]), same) == ((1, 2),)


# -- the engine ------------------------------------------------------------------------------------


def test_failures_that_ended_no_request_count_only_in_a_row(monkeypatch):
    engine, _, _ = make_engine()
    requests = [engine.add(str(i), [3, 4 + i], GREEDY)[0] for i in range(3)]
    count = engine._counter.count
    for _ in range(2):

        def broken(*args):
            monkeypatch.setattr(engine._counter, "count", count)
            raise OSError("the counter is gone")

        monkeypatch.setattr(engine._counter, "count", broken)
        with pytest.raises(OSError):
            engine.step()
        engine.step()
    assert not any(request.finished for request in requests)


def raising_once(function, *errors: BaseException):
    """The function, raising these errors at its first calls."""
    left = list(errors)

    def wrapped(*args, **values):
        if left:
            raise left.pop(0)
        return function(*args, **values)

    return wrapped


def notes(engine) -> str:
    return " ".join(engine.trace.header.notes)


def three(engine) -> list[Request]:
    return [engine.add(str(i), [3, 4 + i], GREEDY)[0] for i in range(3)]


def expect_exact(engine, requests: list[Request]) -> None:
    run(engine)
    for request in requests:
        assert request.finish_reason == "length", request.error
        assert request.output_token_ids == oracle(request.prompt_token_ids, 6, ignore_eos=True)


def test_an_interrupt_while_the_scheduler_looks_at_a_request_ends_none(monkeypatch):
    engine, _, _ = make_engine()
    requests = three(engine)
    admit = engine.memory.admit
    monkeypatch.setattr(engine.memory, "admit", raising_once(admit, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    expect_exact(engine, requests)
    assert not notes(engine)


def test_an_interrupt_of_the_recovery_from_an_interrupt_ends_none(monkeypatch):
    engine, _, _ = make_engine()
    requests = three(engine)
    memory = engine.memory
    monkeypatch.setattr(memory, "admit", raising_once(memory.admit, KeyboardInterrupt()))
    monkeypatch.setattr(memory, "failed", raising_once(memory.failed, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    expect_exact(engine, requests)
    assert not notes(engine)


def test_the_page_store_is_told_of_a_batch_that_could_not_be_started(monkeypatch):
    engine, runner, _ = make_engine()
    three(engine)
    told = []
    monkeypatch.setattr(runner, "failed", lambda: told.append(True))
    runner.fail_next = True
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.step()
    assert told


def test_a_panic_of_one_row_in_the_builder_ends_that_row(monkeypatch):
    class Panic(BaseException):
        pass

    engine, _, _ = make_engine()
    bad, *good = three(engine)
    build = engine._builder.build

    def panics(plan):
        if bad in plan.requests:
            raise Panic("a row")
        return build(plan)

    monkeypatch.setattr(engine._builder, "build", panics)
    with pytest.raises(Panic):
        engine.step()
    assert bad.finish_reason == "error"
    expect_exact(engine, good)


def test_where_none_can_be_admitted_the_first_in_line_ends_and_not_the_others(monkeypatch):
    engine, _, _ = make_engine()
    first, *others = three(engine)
    policy = engine._scheduler._policies.batching
    monkeypatch.setattr(policy, "admits", lambda view: False)
    with pytest.raises(IntegrityError, match="none can be admitted"):
        engine.step()
    monkeypatch.undo()
    assert first.finish_reason == "error"
    expect_exact(engine, others)


def test_a_prompt_whose_second_sample_cannot_be_queued_leaves_no_update_behind(monkeypatch):
    engine, _, _ = make_engine()
    push = engine._scheduler.waiting.push

    def second(request, now_s):
        if request.sample_index:
            raise ValueError("no place")
        push(request, now_s)

    monkeypatch.setattr(engine._scheduler._samples, "add", lambda request: False)
    monkeypatch.setattr(engine._scheduler.waiting, "push", second)
    with pytest.raises(ValueError, match="no place"):
        engine.add("a", [1, 2], SamplingParams(n=2))
    assert engine.take_updates() == [] and not engine.has_requests and not engine.has_work


def test_an_interrupt_as_a_request_ends_costs_no_request_anything(monkeypatch):
    engine, _, _ = make_engine()
    ended, *others = three(engine)
    engine.step()
    remove = engine._scheduler.remove
    monkeypatch.setattr(engine._scheduler, "remove", raising_once(remove, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        engine.abort(ended.request_id)
    assert ended.finish_reason == "abort"
    assert ended in engine.take_updates()
    expect_exact(engine, others)
    assert not notes(engine)


def test_pages_of_a_request_that_has_ended_are_found_by_the_audit(monkeypatch):
    engine, _, _ = make_engine()
    ended = three(engine)[0]
    engine.step()
    monkeypatch.setattr(engine.memory, "release", lambda request: None)
    engine.abort(ended.request_id)
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match="ended still holds pages"):
        engine.audit()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("num_pending_tokens", "a step that is not in flight"),
        ("num_inflight_tokens", "a step that is not in flight"),
        ("num_computed_tokens", "computed tokens and knows only"),
    ],
)
def test_a_count_that_no_step_or_page_stands_behind_is_found_by_the_audit(name, said):
    engine, _, _ = make_engine()
    request = three(engine)[0]
    engine.step()
    setattr(request, name, getattr(request, name) + 1)
    with pytest.raises(IntegrityError, match=said):
        engine.audit()


# -- the doors -------------------------------------------------------------------------------------

CONFIG = EngineConfig(dtype="float32", device="cpu").with_values(
    {"memory.kv_bytes": 4 << 20, "scheduling.max_model_len": 1024}
)
STOPS = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, stop="never")


@pytest.fixture(scope="module")
def llm():
    with LLM("zoo/draft", CONFIG, progress=False) as model:
        yield model


def test_text_that_fails_at_the_very_end_ends_its_request_with_an_error(llm, monkeypatch):
    finish = TextStream.finish
    monkeypatch.setattr(TextStream, "finish", raising_once(finish, ValueError("half a character")))
    outputs = llm.generate(["a", "b"], STOPS, progress=False, errors="return")
    assert sorted(output.finish_reason for output in outputs) == ["error", "length"]
    assert not notes(llm.engine)


def test_a_stop_string_found_when_the_text_ends_is_named_also_at_full_length(llm, monkeypatch):
    finish = TextStream.finish

    def finds(self):
        text = finish(self)
        self._checker.matched = "never"
        return text

    monkeypatch.setattr(TextStream, "finish", finds)
    (output,) = llm.generate("a", STOPS, progress=False)
    assert (output.finish_reason, output.samples[0].stop_reason) == ("stop", "never")


def test_a_refused_prompts_output_says_when_it_ended(llm):
    (output,) = llm.generate([""], STOPS, progress=False, errors="return")
    assert output.finish_reason == "error"
    assert output.metrics.e2e_s == 0.0 and output.metrics.ttft_s is None


def test_what_an_interrupted_call_left_in_the_engine_ends_with_the_next_call(llm):
    (left,) = llm.engine.add("left", [1, 2], SamplingParams(max_tokens=900, ignore_eos=True))
    llm.generate("a", STOPS, progress=False)
    assert left.finish_reason == "abort" and not llm.engine.has_requests


def test_a_stream_whose_last_updates_another_call_lost_still_ends_with_all_its_tokens(llm):
    chunks = llm.stream("a", GREEDY)
    read = [next(chunks)]
    with llm._share.hold() as engine:  # as in a call that was interrupted before it delivered
        while engine.has_work:
            engine.step()
        engine.take_updates()
    read += chunks
    assert sum(len(chunk.token_ids) for chunk in read) == 6
    assert read[-1].finish_reason == "length" and not llm._share._readers


# -- the engine's thread ---------------------------------------------------------------------------


@pytest.fixture
def served():
    with AsyncLLM("zoo/draft", CONFIG, progress=False) as model:
        yield model


def started(what) -> tuple[threading.Thread, list]:
    """A thread that does it, and a list for what it returns or raises."""
    found: list = []

    def run_it() -> None:
        try:
            found.append(what())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run_it, daemon=True)
    thread.start()
    return thread, found


def result_of(what, seconds: float = 10.0):
    thread, found = started(what)
    thread.join(seconds)
    assert found, "hangs"
    return found[0]


class WatchedQueue(queue.Queue):
    """Counts the threads that have come to take something."""

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Semaphore(0)

    def get(self, block: bool = True, timeout: float | None = None):
        self.came.release()
        return super().get(block, timeout)


def test_two_threads_that_wait_for_one_mailbox_both_see_its_end():
    mailbox = Mailbox("a", Wakeups())
    mailbox._items = items = WatchedQueue()
    threads = [started(lambda: mailbox.take(block=True)) for _ in range(2)]
    assert items.came.acquire(timeout=10) and items.came.acquire(timeout=10)
    mailbox.put(None)
    for thread, found in threads:
        thread.join(5)
        assert found == [None]


def test_nothing_comes_into_a_mailbox_behind_its_end():
    mailbox = Mailbox("a", Wakeups())
    mailbox.put(ValueError("the end"))
    mailbox.put(None)
    mailbox.put(ValueError("too late"))
    assert mailbox._items.qsize() == 1


def test_a_mailbox_whose_readers_loop_is_gone_takes_its_end():
    mailbox = Mailbox("a", Wakeups())

    listening = []

    async def listen() -> None:
        listening.append(mailbox.listening())
        listening[0].__enter__()  # and never left, as by a task that was not awaited to its end

    asyncio.run(listen())
    assert mailbox._listeners
    mailbox.put(None)
    assert mailbox.take(block=False) is None


def test_an_abort_before_the_engine_has_the_request_ends_it(served):
    thread = served._thread
    mailbox = thread.open("early")
    thread.abort(mailbox)
    thread.ask(lambda: None, 10)  # the abort found nothing
    long = SamplingParams(max_tokens=900, temperature=0, ignore_eos=True)
    thread.add(mailbox, lambda: served._engine.add("early", [1, 2], long, stream_text=True))
    last = mailbox.take(block=True)
    while (chunk := mailbox.take(block=True)) is not None:
        last = chunk
    assert last is not None and last.finish_reason == "abort"


def test_an_interrupt_between_the_last_chunk_and_the_end_still_ends_the_stream(served, monkeypatch):
    delivery = served._thread._delivery
    end = delivery._end_sample
    monkeypatch.setattr(delivery, "_end_sample", raising_once(end, KeyboardInterrupt()))
    chunks = result_of(lambda: list(served.add("a", GREEDY)))
    assert chunks[-1].finish_reason == "length"


def test_failures_outside_a_step_end_the_thread_only_in_a_row(served, monkeypatch):
    engine = served._engine
    take = engine.take_updates
    for _ in range(6):
        monkeypatch.setattr(engine, "take_updates", raising_once(take, RuntimeError("once")))
        assert len(result_of(lambda: list(served.add("a", GREEDY)))) >= 1
        assert len(list(served.add("b", GREEDY))) == 6
    assert served.health().state != "closed"


def test_a_question_that_stands_in_line_when_the_thread_dies_is_answered(served, monkeypatch):
    thread, post = served._thread, served._thread._inbox.post
    inside, asked, go_on = threading.Event(), threading.Event(), threading.Event()

    def posts(*values):
        post(*values)
        asked.set()

    def exits():
        inside.set()
        go_on.wait(10)
        raise SystemExit(3)

    monkeypatch.setattr(served._engine, "step", exits)
    served.add("a", GREEDY)
    assert inside.wait(10)
    monkeypatch.setattr(thread._inbox, "post", posts)
    asking, found = started(lambda: thread.ask(lambda: 1, 60))
    assert asked.wait(10)
    go_on.set()
    asking.join(10)
    assert found and "the engine's thread ended: SystemExit" in str(found[0])


def test_an_exit_in_a_command_ends_the_thread(served):
    answer = result_of(lambda: served._thread.ask(lambda: sys.exit(3), 10))
    assert isinstance(answer, SystemExit)
    assert served._thread.join(10)
    with pytest.raises(RuntimeError, match="the engine's thread ended: SystemExit"):
        served.add("a", GREEDY)


def test_one_stuck_step_is_reported_once(caplog):
    with AsyncLLM("zoo/draft", CONFIG, progress=False, watchdog_s=0.05) as model:
        submit, wait = model._engine._runner.submit, model._thread._ended.wait
        looks, go_on = [], threading.Event()

        def look(timeout_s):
            if "taken more than" in caplog.text:
                looks.append(timeout_s)
            if len(looks) > 4:
                go_on.set()
            return wait(timeout_s)

        def stuck(batch):
            assert go_on.wait(20)
            return submit(batch)

        model._thread._ended.wait = look
        model._engine._runner.submit = stuck
        with caplog.at_level(logging.ERROR, logger="minserve"):
            once = SamplingParams(max_tokens=1, temperature=0)
            list(model.add("a", once))
    assert caplog.text.count("taken more than") == 1
