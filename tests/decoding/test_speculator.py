"""A proposer can be a caller's code: its answers are checked, and a bad one ends one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from engine.fakes import VOCAB, EchoProposer, make_engine, oracle, run

from minserve.config import ConfigError, EngineConfig
from minserve.decoding import Proposer, ProposerError, Speculator
from minserve.draft import Draft
from minserve.engine import Engine
from minserve.engine.parts import EngineParts
from minserve.request import Request, SamplingParams, TokenMask

GREEDY = SamplingParams(temperature=0.0)
PROMPTS = {"a": [3, 4, 5], "b": [7], "c": [9, 2]}
NUM = 12


class Answers(Proposer):
    """Drafts what a function says of one request."""

    proposes_trees = True

    def __init__(self, answer: Callable[[Request], Any]) -> None:
        self.answer = answer

    def propose(self, requests: Sequence[Request]) -> list[Any]:
        return [self.answer(request) for request in requests]


def started(proposer: Proposer, **values: Any) -> tuple[Engine, dict[str, Request]]:
    engine, _, _ = make_engine(EngineConfig().with_values(values), proposer=proposer)
    params = SamplingParams(max_tokens=NUM, temperature=0.0, ignore_eos=True)
    requests = {name: engine.add(name, prompt, params)[0] for name, prompt in PROMPTS.items()}
    return engine, requests


def check(requests: dict[str, Request], *failed: str) -> None:
    for name, request in requests.items():
        expected = oracle(PROMPTS[name], NUM, ignore_eos=True)
        if name in failed:
            assert request.finish_reason == "error"
            assert request.output_token_ids == expected[: request.num_output_tokens]
        else:
            assert (request.finish_reason, request.output_token_ids) == ("length", expected)


def of_b(bad: Any) -> Callable[[Request], Any]:
    """A good draft for all but one request."""
    return lambda one: bad if one.request_id == "b" else Draft((1, 2))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ((1, 2), "Answers.propose answered (1, 2) (tuple): expected Draft(token_ids) or None"),
        (7, "answered 7 (int): expected Draft"),
        (Draft((VOCAB,)), f"answered {VOCAB} (int): expected token ids from 0 to {VOCAB - 1}"),
        (Draft((3, -1)), "answered -1 (int): expected token ids from 0"),
        (Draft((1,) * 63, (-1,) * 63), "expected a tree of at most 62 tokens"),
    ],
)
def test_a_bad_answer_ends_its_own_request(bad: Any, says: str) -> None:
    engine, requests = started(Answers(of_b(bad)))
    run(engine)
    check(requests, "b")
    assert isinstance(requests["b"].cause, ProposerError) and says in (requests["b"].error or "")
    assert engine.memory.pool.num_owned == 0


def test_an_error_for_one_request_ends_that_request() -> None:
    def answer(request: Request) -> Draft:
        if request.request_id == "b" and request.num_output_tokens > 4:
            raise ZeroDivisionError("no n-gram")
        return Draft((1, 2))

    engine, requests = started(Answers(answer))
    run(engine)
    check(requests, "b")
    assert isinstance(requests["b"].cause, ZeroDivisionError)


def kind(value: object) -> str:
    """A name without an address: the workers of a test run must agree on it."""
    return f"{type(value).__name__}{len(value) if isinstance(value, list) else ''}"


@pytest.mark.parametrize("answers", [None, [], [None] * 7, 5, iter(())], ids=kind)
def test_a_list_of_another_length_is_an_error_of_every_request(answers: Any) -> None:
    class Wrong(Proposer):
        def propose(self, requests: Sequence[Request]) -> Any:
            return answers

    engine, requests = started(Wrong())
    with pytest.raises(ProposerError, match="a list of 1 drafts, one for each request"):
        run(engine)
    check(requests, *PROMPTS)
    assert "a list of 1 drafts, one for each request" in (requests["a"].error or "")
    other = engine.add("d", [5], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
    run(engine)
    assert other[0].output_token_ids == oracle([5], 1)


def test_a_proposer_without_propose_says_so() -> None:
    engine, requests = started(Proposer())
    with pytest.raises(NotImplementedError):
        run(engine)
    check(requests, *PROMPTS)
    assert "Proposer has no method propose(requests)" in (requests["a"].error or "")


def test_a_tree_needs_a_proposer_of_trees() -> None:
    proposer = Answers(of_b(Draft((1, 2), (-1, -1))))
    proposer.proposes_trees = False  # type: ignore[misc]
    engine, requests = started(proposer)
    run(engine)
    check(requests, "b")
    assert "expected a chain, because its proposes_trees is False" in (requests["b"].error or "")


def test_an_interrupt_while_proposing_ends_no_request() -> None:
    times = [0]

    def answer(request: Request) -> Draft:
        times[0] += 1
        if times[0] == 4:
            raise KeyboardInterrupt
        return Draft((1,))

    engine, requests = started(Answers(answer))
    with pytest.raises(KeyboardInterrupt):
        run(engine)
    run(engine)
    check(requests)


def test_no_draft_and_an_empty_draft_are_the_same() -> None:
    for nothing in (None, Draft(())):
        engine, requests = started(Answers(lambda _, nothing=nothing: nothing))
        run(engine)
        check(requests)
        assert engine.trace.totals.speculation.num_drafts == 0


def test_only_requests_with_nothing_else_to_compute_are_asked_for() -> None:
    asked: list[tuple[str, int, int]] = []

    def answer(request: Request) -> None:
        asked.append((request.request_id, request.num_computed_tokens, request.num_tokens))

    engine, requests = started(
        Answers(answer), **{"scheduling.max_num_batched_tokens": 3, "scheduling.max_num_seqs": 2}
    )
    run(engine)
    check(requests)
    assert asked and all(computed == known - 1 for _, computed, known in asked)
    # The last token of a request needs no draft: nothing could be accepted.
    assert max(known - len(PROMPTS[name]) for name, _, known in asked) == NUM - 2


@pytest.mark.parametrize(
    ("parents", "kept"),
    [
        (None, (1, 2, 3)),
        # The rows of a tree may fill the block table, and none may be too deep to be accepted.
        ((-1, 0, 1, 2, -1, 4), (1, 2, 3, 5)),
        ((-1, -1, -1, -1, -1, -1), (1, 2, 3, 4)),
    ],
)
def test_a_draft_is_cut_to_what_its_request_may_still_generate(parents: Any, kept: Any) -> None:
    """With room for four tokens three proposed ones may be accepted: the model draws one more."""
    request = Request("r", [7] * 5, GREEDY, 0.0, 0, max_len=10, token_ids=[7] * 6)
    request.num_computed_tokens = 5
    speculator = Speculator(Answers(lambda _: Draft((1, 2, 3, 4, 5, 6), parents)), VOCAB)
    (draft,) = speculator.propose([request], lambda *_: pytest.fail("refused")).values()
    assert draft.token_ids == kept and max(draft.depths) <= 3


class Watches(EchoProposer):
    """Keeps the hidden states of each request's tokens."""

    needs_hidden = True

    def __init__(self, trees: bool, rightness: float) -> None:
        super().__init__(trees, rightness)
        self.seen: dict[str, list[float]] = {}

    def observe(self, request: Request, hidden: torch.Tensor) -> None:
        states = self.seen.setdefault(request.request_id, [])
        states += hidden[:, 0].tolist()
        # The echo's state is the number of tokens that the row saw.
        assert len(states) == request.num_output_tokens


@pytest.mark.parametrize("trees", [False, True])
@pytest.mark.parametrize("overlap", [False, True])
def test_hidden_states_are_those_of_the_new_tokens(trees: bool, overlap: bool) -> None:
    proposer = Watches(trees, 0.7)
    engine, requests = started(proposer, **{"scheduling.async_scheduling": overlap})
    run(engine)
    check(requests)
    for name, prompt in PROMPTS.items():
        assert proposer.seen[name] == [len(prompt) + place for place in range(NUM)]


@pytest.mark.parametrize("rightness", [0.0, 1.0])
@pytest.mark.parametrize("place", range(1, 7))
def test_the_token_that_ends_a_request_has_its_hidden_state(place: int, rightness: float) -> None:
    proposer = Watches(False, rightness)
    engine, _, _ = make_engine(proposer=proposer)
    expected = oracle([3, 4, 5], NUM, ignore_eos=True)
    params = SamplingParams(
        max_tokens=NUM, temperature=0.0, ignore_eos=True, stop_token_ids=[expected[place]]
    )
    (request,) = engine.add("r", [3, 4, 5], params)
    run(engine)
    assert request.finish_reason == "stop"
    assert request.output_token_ids == expected[: expected.index(expected[place]) + 1]
    assert proposer.seen["r"] == [3 + each for each in range(request.num_output_tokens)]


def test_an_error_of_a_mask_after_a_proposed_token_ends_its_own_request() -> None:
    class KnowsNoProposal:
        needs_known_tokens = True

        def at(self, request: Request, tokens: Sequence[int]) -> TokenMask:
            if len(tokens) > request.num_tokens:
                raise LookupError("the grammar ends before this token")
            return TokenMask()

    engine, requests = started(EchoProposer(True, 0.7))
    requests["b"].masks = (KnowsNoProposal(),)
    with pytest.raises(LookupError):
        run(engine)
    run(engine)
    check(requests, "b")


@pytest.mark.parametrize("trees", [False, True])
@pytest.mark.parametrize("stop", [False, True])
def test_the_record_of_an_ended_request_counts_its_last_draft(trees: bool, stop: bool) -> None:
    engine, _, _ = make_engine(proposer=EchoProposer(trees, 1.0))
    for name, prompt in PROMPTS.items():
        ends = oracle(prompt, NUM, ignore_eos=True)[7:8] if stop else []
        params = SamplingParams(
            max_tokens=NUM, temperature=0.0, ignore_eos=True, stop_token_ids=ends
        )
        engine.add(name, prompt, params)
    live = {request.request_id: request for request in engine.live_requests()}
    run(engine)
    for record in engine.trace.requests:
        assert record.metrics == live[record.request_id].metrics()
    totals = engine.trace.totals.speculation
    records = [record.metrics for record in engine.trace.requests]
    assert sum(each.num_proposed_tokens for each in records) == sum(totals.proposed_tokens)
    assert sum(each.num_accepted_tokens for each in records) == sum(totals.accepted_tokens)


@pytest.mark.parametrize("trees", [False, True])
@pytest.mark.parametrize("rightness", [0.0, 0.6, 1.0])
def test_the_details_of_steps_lie_end_to_end(trees: bool, rightness: float) -> None:
    """Each step of a request begins where the one before left it, and says what that one added."""
    engine, requests = started(EchoProposer(trees, rightness), **{"trace.per_request": True})
    run(engine)
    proposed = accepted = 0
    for name, request in requests.items():
        parts = [part for step in engine.trace.steps for part in step.requests]
        parts = [part for part in parts if part.request_id == name]
        at = 0
        for part in parts:
            assert part.start == at
            assert part.num_known == (1 if at else len(PROMPTS[name]))
            assert part.num_accepted == (len(part.new_token_ids) - 1 if part.num_proposed else 0)
            at = part.stop
            proposed += part.num_proposed
        # The last token that was drawn is never computed.
        assert at == request.num_tokens - 1
        new = [token for part in parts for token in part.new_token_ids]
        assert new == request.output_token_ids == oracle(PROMPTS[name], NUM, True)
        accepted += sum(part.num_accepted for part in parts)
    totals = engine.trace.totals.speculation
    assert proposed == sum(totals.proposed_tokens)
    assert accepted == sum(totals.accepted_tokens)


def test_an_accepted_token_that_ends_its_request_is_counted_in_the_details_too() -> None:
    proposer = EchoProposer(False, 1.0)
    config = EngineConfig().with_values({"trace.per_request": True})
    for place in range(2, NUM):
        engine, _, _ = make_engine(config, proposer=proposer)
        stop = oracle([3, 4, 5], NUM, ignore_eos=True)[place]
        params = SamplingParams(
            max_tokens=NUM, temperature=0.0, ignore_eos=True, stop_token_ids=[stop]
        )
        (request,) = engine.add("r", [3, 4, 5], params)
        run(engine)
        assert request.finish_reason == "stop" and request.output_token_ids[-1] == stop
        parts = [part for step in engine.trace.steps for part in step.requests]
        counted = sum(engine.trace.totals.speculation.accepted_tokens)
        assert sum(part.num_accepted for part in parts) == counted == request.num_accepted_tokens
        assert parts[-1].stop == request.num_tokens - 1


def test_an_error_of_observe_ends_its_request() -> None:
    class Breaks(EchoProposer):
        needs_hidden = True

        def observe(self, request: Request, hidden: torch.Tensor) -> None:
            if request.request_id == "c":
                raise ValueError("no head for this")

    engine, requests = started(Breaks(False, 1.0))
    run(engine)
    check(requests, "c")


@pytest.mark.parametrize("wrong", [7, EchoProposer, object(), lambda requests: []])
def test_what_is_no_proposer_is_refused(wrong: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"EngineParts\(proposer=.*derives from Proposer, or None"
    ):
        EngineParts(proposer=wrong)
