"""What a step's results do to requests: log probabilities, ends and their reasons, details of the
trace, and what is learnt about costs. Then how requests end after an error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from engine.fakes import EOS, VOCAB, EchoRunner, make_engine, next_token, oracle, run

from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.memory import IntegrityError
from minserve.request import Request, SamplingParams, Status

PROMPTS = [[(7 * i + 3 * j) % (VOCAB - 1) + 1 for j in range(9)] for i in range(6)]


def config(**values: object) -> EngineConfig:
    return EngineConfig().with_values({path.replace("__", "."): v for path, v in values.items()})


def greedy(max_tokens: int = 8, **values: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **values)


def answers(runner: EchoRunner, **values: Any) -> None:
    """Make the runner report these fields with every result."""
    collect = runner.collect
    runner.collect = lambda handle: collect(handle)._replace(**values)  # type: ignore[method-assign]


def prompt_that_ends_after(num_tokens: int) -> list[int]:
    """A prompt whose output has its first end-of-sequence token at this place."""
    for first in range(1, VOCAB):
        for second in range(1, VOCAB):
            tokens = oracle([first, second], num_tokens + 1)
            if tokens[-1] == EOS and len(tokens) == num_tokens:
                return [first, second]
    raise AssertionError("no such prompt")


# -- log probabilities ---------------------------------------------------------------------------


def test_each_request_of_a_batch_gets_the_number_of_logprobs_that_it_asked_for():
    engine, runner, _ = make_engine()
    top = tuple((token, -1.0 - token) for token in range(4))
    collect = runner.collect

    def widest(handle: Any) -> Any:
        """Four alternatives in every row, as in a batch in which one request asks for four."""
        result = collect(handle)
        rows = {row: replace(entry, top=top) for row, entry in result.logprobs.items()}
        prompts = [replace(entry, top=top) for entry in result.prompt_logprobs]
        return result._replace(logprobs=rows, prompt_logprobs=prompts)

    runner.collect = widest  # type: ignore[method-assign]
    wanted = [(4, 1), (2, 3), (1, 0), (0, 2)]
    requests = [
        engine.add(str(i), PROMPTS[i], greedy(5, logprobs=drawn, prompt_logprobs=scored))[0]
        for i, (drawn, scored) in enumerate(wanted)
    ]
    run(engine)
    for request, (drawn, scored) in zip(requests, wanted, strict=True):
        assert len(request.logprobs) == request.num_output_tokens
        assert {entry.top for entry in request.logprobs} == {top[:drawn]}
        nothing, *entries = request.prompt_logprobs
        assert nothing is None and len(entries) == request.num_prompt_tokens - 1
        assert {entry.top for entry in entries if entry} == {top[:scored]}


# -- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 2, 4])
def test_end_of_sequence_exactly_at_min_tokens_ends_the_request(num_tokens):
    prompt = prompt_that_ends_after(num_tokens)
    engine, _, _ = make_engine()
    request = engine.add("a", prompt, greedy(20, min_tokens=num_tokens))[0]
    run(engine)
    assert request.num_output_tokens == num_tokens
    assert (request.finish_reason, request.stop_reason) == ("stop", None)


def test_a_stop_token_before_min_tokens_does_not_end_the_request():
    first, second = oracle(PROMPTS[0], 2)
    engine, _, _ = make_engine()
    request = engine.add("a", PROMPTS[0], greedy(2, stop_token_ids=(first,), min_tokens=2))[0]
    run(engine)
    assert request.output_token_ids == [first, second]
    assert (request.finish_reason, request.stop_reason) == ("length", None)


class Letters:
    """A tokenizer whose tokens are characters; `late` keeps all text back until the end."""

    def __init__(self, late: bool = False) -> None:
        self._late = late

    def detokenizer(self, skip_special_tokens: bool) -> Letters:
        made = Letters(self._late)
        made._kept = ""
        return made

    _kept = ""

    def push(self, token_ids: Sequence[int]) -> str:
        text = self.decode(token_ids)
        if not self._late:
            return text
        self._kept += text
        return ""

    def finish(self) -> str:
        return self._kept

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(0x4E00 + token) for token in token_ids)


def with_text(late: bool = False) -> Engine:
    engine, _, _ = make_engine(tokenizer=Letters(late))
    return engine


def test_the_stop_reason_is_none_for_end_of_sequence():
    prompt = prompt_that_ends_after(3)
    engine = with_text()
    request = engine.add("a", prompt, greedy(20))[0]
    both = engine.add("b", prompt, greedy(20, stop_token_ids=(EOS,)))[0]
    run(engine)
    assert (request.finish_reason, request.stop_reason) == ("stop", None)
    assert (both.finish_reason, both.stop_reason) == ("stop", None)


def test_the_stop_reason_is_the_id_of_a_stop_token():
    token = oracle(PROMPTS[0], 3)[2]
    engine = with_text()
    request = engine.add("a", PROMPTS[0], greedy(20, stop_token_ids=(token,)))[0]
    ignored = prompt_that_ends_after(3)
    params = greedy(20, stop_token_ids=(EOS,), ignore_eos=True)
    other = engine.add("b", ignored, params)[0]
    run(engine)
    assert (request.finish_reason, request.stop_reason) == ("stop", token)
    assert (other.finish_reason, other.stop_reason) == ("stop", EOS)


def test_the_stop_reason_is_the_stop_string():
    tokens = oracle(PROMPTS[0], 3)
    stop = Letters().decode(tokens[1:3])
    engine = with_text()
    request = engine.add("a", PROMPTS[0], greedy(20, stop=(stop,)))[0]
    run(engine)
    assert request.output_token_ids == tokens
    assert (request.finish_reason, request.stop_reason) == ("stop", stop)


@pytest.mark.parametrize("aborted", [False, True])
def test_a_stop_string_in_the_text_held_back_until_the_end_does_not_hide_an_abort(aborted):
    tokens = oracle(PROMPTS[0], 2)
    stop = Letters().decode(tokens[1:])
    engine = with_text(late=True)
    request = engine.add("a", PROMPTS[0], greedy(2 if not aborted else 9, stop=(stop,)))[0]
    engine.step()
    engine.step()
    if aborted:
        engine.abort("a")
    assert request.num_output_tokens == 2
    expected = ("abort", None) if aborted else ("stop", stop)
    assert (request.finish_reason, request.stop_reason) == expected
    assert engine.text_of(request) == Letters().decode(tokens[:1])


# -- what a step leaves in the trace -------------------------------------------------------------


def test_a_row_that_ends_with_an_error_has_no_new_token_in_the_details():
    engine, runner, _ = make_engine(config(trace__per_request=True))
    good, bad = PROMPTS[:2]
    runner.poison_token = next_token(bad)
    assert runner.poison_token != next_token(good)
    first = engine.add("good", good, greedy())[0]
    second = engine.add("bad", bad, greedy())[0]
    step = engine.step()
    assert second.finish_reason == "error"
    details = {entry.request_id: entry for entry in step.requests}
    assert details["good"].new_token_ids == (first.token_ids[-1],) == (next_token(good),)
    assert details["bad"].new_token_ids == ()
    assert details["bad"].num_tokens == len(bad)


def test_the_cost_of_a_prompt_token_is_its_share_of_the_pass_without_compilation():
    engine, runner, _ = make_engine()
    costs = engine.memory.costs
    collect = runner.collect
    answers(runner, forward_s=5.0, compile_s=3.0)
    engine.add("first", [1] * 10, greedy(9, ignore_eos=True))
    engine.step()
    assert costs.compute_s(1) == pytest.approx((5.0 - 3.0) / 10)
    engine.step()  # no prompt token, nothing learnt
    assert costs.compute_s(1) == pytest.approx(0.2)
    engine.add("second", [2] * 3, greedy(9, ignore_eos=True))
    runner.collect = collect  # type: ignore[method-assign]
    answers(runner, forward_s=9.0, compile_s=1.0)
    step = engine.step()
    assert (step.num_prefill_tokens, step.num_decode_tokens) == (3, 1)
    each = (9.0 - 1.0) * 3 / 4 / 3
    assert costs.compute_s(1) == pytest.approx(0.8 * 0.2 + 0.2 * each)


def test_what_happens_to_pages_during_the_commit_is_in_the_trace_of_that_step(monkeypatch):
    engine, _, _ = make_engine(config(memory__prefix_cache="radix"))
    memory = engine.memory
    commit = memory.commit

    def commit_and_count(request: Request, kept: int, ahead: int = 0) -> None:
        commit(request, kept, ahead)
        memory._events.evicted_blocks += 2
        memory._events.copied_blocks += 1
        memory._events.hit_tokens += 5

    engine.add("a", PROMPTS[0], greedy(4, ignore_eos=True))
    monkeypatch.setattr(memory, "commit", commit_and_count)
    first = engine.step()
    monkeypatch.undo()
    second = engine.step()
    counted = [
        (step.blocks.evicted_blocks, step.blocks.copied_blocks, step.blocks.hit_tokens)
        for step in (first, second)
    ]
    assert counted == [(2, 1, 5), (0, 0, 0)]


# -- ends after an error -------------------------------------------------------------------------


def state(request: Request) -> tuple[object, ...]:
    return tuple(
        getattr(request, name)
        for name in ("status", "finish_reason", "stop_reason", "finished_s", "error", "cause")
    )


@pytest.mark.parametrize("name", ["nothing else", "a sibling", "a new request of that name"])
def test_failing_a_request_that_has_ended_completely_changes_nothing(name):
    engine, _, _ = make_engine()
    ended, *others = engine.add("a", PROMPTS[0], greedy(n=2 if name == "a sibling" else 1))
    engine.abort_requests([ended])
    if name == "a new request of that name":
        others = engine.add("a", PROMPTS[1], greedy())
    engine.take_updates()
    before = state(ended), [state(other) for other in others], engine.trace.snapshot()
    engine._requests.fail(ended, RuntimeError("too late"))
    assert (state(ended), [state(other) for other in others], engine.trace.snapshot()) == before
    assert engine.live_requests() == others and engine.take_updates() == []
    engine.audit()


def test_starting_over_ends_each_request_at_the_end_of_the_last_step():
    engine, _, clock = make_engine(config(scheduling__max_num_seqs=2))
    half, runs, waits = (engine.add(str(i), PROMPTS[i], greedy(20))[0] for i in range(3))
    engine.step()
    # An interrupt came after its reason was set and before it left the queue.
    half.finish_reason, half.finished_s = "length", 0.001
    last_s = clock.now()
    clock.advance(5.0)
    error = IntegrityError("pages do not add up")
    engine.take_updates()
    engine._books.start_over(error)
    assert (half.finish_reason, half.finished_s, half.error, half.cause) == (
        "length",
        0.001,
        None,
        None,
    )
    for request in (runs, waits):
        assert (request.finish_reason, request.finished_s) == ("error", last_s)
        assert request.error == "IntegrityError: pages do not add up" and request.cause is error
    assert engine._recorder.end_s == last_s
    assert [r.status for r in (half, runs, waits)] == [Status.FINISHED] * 3
    assert engine.take_updates() == [half, runs, waits]
    assert not engine.has_requests and not engine.has_work
    assert [note for note in engine.trace.header.notes if "3 requests were ended" in note]
    engine.audit()


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("num_flights", [0, 1, 2])
def test_starting_over_tells_memory_the_end_of_each_step_in_flight(num_flights, lost, monkeypatch):
    engine, runner, _ = make_engine(config(scheduling__async_scheduling=True), lazy=True)
    engine.add("a", PROMPTS[0], greedy(20, ignore_eos=True))
    for _ in range(num_flights):
        assert engine._submit()
    assert len(engine._in_flight) == num_flights
    told = []
    monkeypatch.setattr(engine.memory, "collected", lambda: told.append(1))
    runner.fail_late = lost
    engine._books.start_over(IntegrityError("pages do not add up"))
    assert len(told) == num_flights and not engine._in_flight


@pytest.mark.parametrize("where", ["check", "record"])
def test_an_error_after_the_commit_ends_no_request_of_the_batch(where, monkeypatch):
    engine, _, _ = make_engine(config(memory__check_integrity=True))
    requests = [engine.add(str(i), PROMPTS[i], greedy(6))[0] for i in range(3)]
    engine.step()
    owner, name = (engine.memory, "check") if where == "check" else (engine._recorder, "step_trace")
    real, left = getattr(owner, name), [1]

    def fails_once(*args: object) -> object:
        if left:
            left.pop()
            raise RuntimeError("cannot look")
        return real(*args)

    monkeypatch.setattr(owner, name, fails_once)
    with pytest.raises(RuntimeError, match="cannot look"):
        engine.step()
    assert not left and [r.finish_reason for r in requests] == [None] * 3
    assert [r.num_output_tokens for r in requests] == [2] * 3
    run(engine)
    for request in requests:
        assert request.output_token_ids == oracle(request.prompt_token_ids, 6)
