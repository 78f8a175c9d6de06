"""A run as lanes: what each request did in each step, read back from `StepTrace.requests`.

The engine's own definitions (what is a decode, what was computed again) applied to the record; no
scheduling is guessed beyond telling a preempted request from one that had no turn.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from minserve.trace import FinishedRequest, RequestStep, StepTrace, TraceSnapshot

LaneKey = tuple[str, int]


@dataclass(frozen=True)
class Span:
    """One state of one request over consecutive steps."""

    state: str
    """A key of `theme.STATES`."""
    first: int
    """Index into the run's kept steps."""
    last: int
    """The same, included."""
    start_s: float
    end_s: float
    tokens: int = 0
    """Tokens computed."""
    recomputed: int = 0
    """Of those, computed before."""


@dataclass
class Lane:
    """A request (one sample of it) and all it did."""

    key: LaneKey
    name: str
    parts: list[tuple[int, RequestStep]] = field(default_factory=list)
    """(index into the kept steps, what it did there)."""
    finished: FinishedRequest | None = None

    @property
    def num_prompt_tokens(self) -> int | None:
        """Where known: from its metrics, else from the position of its first output."""
        if self.finished is not None:
            return self.finished.metrics.num_prompt_tokens
        for _, part in self.parts:
            if part.new_token_ids:
                return part.start + part.num_known
        return None

    def is_decode(self, part: RequestStep) -> bool:
        """True where the step computed the newest token of a request that had output already."""
        prompt = self.num_prompt_tokens
        return (
            part.num_known == 1
            and bool(part.new_token_ids)
            and prompt is not None
            and part.start >= prompt
        )

    def state(self, part: RequestStep) -> str:
        """State of the step for this request."""
        if part.num_recomputed:
            return "recompute"
        return "decode" if self.is_decode(part) else "prefill"


def lanes(run: TraceSnapshot) -> list[Lane]:
    """Lanes in order of arrival; requests that never ran, or ran before the kept steps, too."""
    found: dict[LaneKey, Lane] = {}
    for index, step in enumerate(run.steps):
        for part in step.requests:
            key = (part.request_id, part.sample_index)
            if key not in found:
                found[key] = Lane(key, lane_name(key))
            found[key].parts.append((index, part))
    for request in run.requests:
        key = (request.request_id, request.sample_index)
        if key not in found:
            found[key] = Lane(key, lane_name(key))
        found[key].finished = request

    def arrival(lane: Lane) -> float:
        if lane.finished is not None:
            return lane.finished.metrics.arrival_s
        return run.steps[lane.parts[0][0]].start_s

    # Stable: requests that arrived together stay in the order the engine took them.
    order = {lane.key: arrival(lane) for lane in found.values()}
    return sorted(found.values(), key=lambda lane: order[lane.key])


def lane_name(key: LaneKey) -> str:
    """What a lane is called: the request's id, shortened as the front door numbers them."""
    request_id, sample = key
    name = request_id.removeprefix("request-") if request_id[-1:].isdigit() else request_id
    return name if sample == 0 else f"{name}.{sample}"


def spans(lane: Lane, run: TraceSnapshot) -> list[Span]:
    """All states of a lane in order of time, waiting and pauses included."""
    steps, found = run.steps, []
    if not lane.parts:
        return []
    first_index = lane.parts[0][0]
    if lane.finished is not None:
        metrics = lane.finished.metrics
        arrival, begin = metrics.arrival_s, metrics.first_scheduled_s
        if begin is not None and arrival < begin <= steps[first_index].start_s:
            waited = [i for i in range(first_index) if steps[i].end_s > arrival]
            first = waited[0] if waited else first_index
            found.append(Span("waiting", first, first_index - 1, arrival, begin))
    end = steps[first_index].start_s
    previous: tuple[int, RequestStep] | None = None
    for index, part in lane.parts:
        if previous is not None and index > previous[0] + 1:
            state = pause_state(steps, previous, (index, part))
            found.append(Span(state, previous[0] + 1, index - 1, end, steps[index].start_s))
        step = steps[index]
        found.append(
            Span(
                lane.state(part), index, index, step.start_s, step.end_s,
                part.num_tokens, part.num_recomputed,
            )
        )  # fmt: skip
        end, previous = step.end_s, (index, part)
    return found


def pause_state(
    steps: Sequence[StepTrace], before: tuple[int, RequestStep], after: tuple[int, RequestStep]
) -> str:
    """Why a request skipped steps: "preempted" (it lost its pages) or "stalled" (no budget)."""
    (first, old), (last, new) = before, after
    if new.start >= old.stop:
        return "stalled"
    if old.start or new.start:
        return "preempted"
    # Without a cache every step starts over, so the position alone does not tell.
    lost = any(steps[i].num_preempted for i in range(first + 1, last + 1))
    return "preempted" if lost else "stalled"


def merged(found: Sequence[Span]) -> list[Span]:
    """Neighbouring spans of equal state joined, where one follows the other at once."""
    joined: list[Span] = []
    for span in found:
        last = joined[-1] if joined else None
        if last is not None and last.state == span.state and last.last + 1 == span.first:
            joined[-1] = Span(
                span.state, last.first, span.last, last.start_s, span.end_s,
                last.tokens + span.tokens, last.recomputed + span.recomputed,
            )  # fmt: skip
        else:
            joined.append(span)
    return joined


def holders(
    run: TraceSnapshot, index: int, found: Sequence[Lane] | None = None
) -> dict[LaneKey, RequestStep]:
    """Who holds pages during a kept step, and the last thing each did up to it.

    A request that computed nothing in the step still holds its pages, unless it had finished or
    was preempted.
    """
    steps, holding = run.steps, {}
    for lane in found if found is not None else lanes(run):
        place = bisect_right(lane.parts, index, key=lambda entry: entry[0])
        if not place:
            continue
        at, part = lane.parts[place - 1]
        if at < index:
            later = lane.parts[place : place + 1]
            if later and pause_state(steps, (at, part), later[0]) == "preempted":
                continue
            if not later and lane.finished is not None:
                continue
        holding[lane.key] = part
    return holding
