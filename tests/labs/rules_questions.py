"""What a chapter's questions must be. Every rule returns sentences; none is good news."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import Traffic
from minserve.build import build_virtual_engine
from minserve.config import EngineConfig
from minserve.memory import RadixIndex
from minserve.memory.keys import TokenBlocks
from minserve.request import Request
from minserve.spec import ModelSpec
from minserve.trace import RunTrace
from minserve.virtual import CostModel
from widgets.scoring.questions import ChapterQuestions, Choice, Expression, load

LONGEST = {
    "question": 45,
    "reason": 16,
    "answer": 16,
    "feedback": 26,
    "explanation": 45,
    "question for class": 55,
}
"""Words."""


def trace_of(spec: ModelSpec, config: EngineConfig, cost: CostModel, traffic: Traffic) -> RunTrace:
    """A run on the virtual clock, for evidence that a chapter's own runs do not hold."""
    engine = build_virtual_engine(spec, config, cost)
    drive(engine, traffic)
    return engine.trace


def open_loop_waits(
    spec: ModelSpec, config: EngineConfig, cost: CostModel, traffic: Traffic
) -> list[float]:
    """Seconds to the first token of each request, in order of arrival, on the virtual clock."""
    return _waits(drive(build_virtual_engine(spec, config, cost), traffic).requests)


def closed_loop_waits(
    spec: ModelSpec, config: EngineConfig, cost: CostModel, traffic: Traffic, *, users: int
) -> list[float]:
    """The same where `users` clients each send their next request when their last has ended."""
    engine = build_virtual_engine(spec, config, cost)
    coming = iter(enumerate(traffic.requests))
    requests: list[Request] = []
    while True:
        live = sum(request.finish_reason is None for request in requests)
        for number, timed in islice(coming, users - live):
            requests += engine.add(f"{number}", timed.prompt_token_ids, timed.params)
        if not engine.has_work:
            return _waits(requests)
        engine.step()


def _waits(requests: Iterable[Request]) -> list[float]:
    waits = (request.metrics().ttft_s for request in requests)
    return [wait_s for wait_s in waits if wait_s is not None]


def pages_found(known: Sequence[int], wanted: Sequence[int], block_size: int = 16) -> int:
    """Whole pages of `wanted` that a tree finds which holds the pages of `known`."""
    index, held, parent = RadixIndex(), TokenBlocks(b"", known, block_size), None
    for number in range(len(known) // block_size):
        parent = index.insert(held, number, parent, number)
    return len(index.match(TokenBlocks(b"", wanted, block_size), len(wanted)).blocks)


HELPERS: Mapping[str, Any] = {
    each.__name__: each for each in (trace_of, open_loop_waits, closed_loop_waits, pages_found)
}
"""Names that evidence may use beside the chapter's own."""


def recap_answers_have_evidence(chapter_name: str, namespace: Mapping[str, Any]) -> list[str]:
    """Each recap answer marked right is so by the chapter's own numbers.

    `chapter_name` is "45b" or "45b_chunked_prefill"; `namespace` what the chapter defines in a
    headless run.
    """
    found = []
    for number, choice in enumerate(load(chapter_name.split("_")[0]).recap.questions, start=1):
        found += [f"recap {number}: {text}" for text in _refuted(choice, HELPERS | namespace)]
    return found


def _refuted(choice: Choice, names: Mapping[str, Any]) -> Iterator[str]:
    if not choice.evidence:
        yield f"{choice.text!r} has no evidence"
        return
    for expression, expected in [
        (choice.evidence, True),
        *((each, False) for each in choice.evidence_not),
    ]:
        try:
            value = Expression(expression, names).value()
        except Exception as error:
            yield f"{expression} raises {type(error).__name__}: {error}"
            continue
        if type(value) is not bool or value is not expected:
            yield f"{expression} is {value!r}, expected {expected}"


def texts(asked: ChapterQuestions) -> Iterator[tuple[str, str]]:
    """Every sentence of a chapter's questions, with its kind (a key of LONGEST)."""
    for prediction in asked.predict.values():
        for question in prediction.questions:
            yield "question", question.text
            for reason in question.reasons:
                yield "reason", reason.text
                yield "feedback", reason.feedback
    for quantity in asked.estimate.values():
        yield "question", quantity.text
        yield "explanation", quantity.explain
    for choice in asked.recap.questions:
        yield "question", choice.text
        for answer in choice.answers:
            yield "answer", answer.text
            yield "feedback", answer.feedback
    yield "question for class", asked.for_class.question


def words(text: str) -> int:
    """How many there are."""
    return len(re.findall(r"[^\W_][\w'’.,-]*", text))
