"""How long a call takes on the device, without the host's time.

A CUDA graph of many calls, each on its own buffers, is replayed between two events: no time is
spent on launches, and a call's buffers have left the L2 cache before they are used again. A call
that cannot be captured is queued after a pause, so that all calls are queued when the device
begins. A dry run uses a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from minserve.bench.interleave import Spread, interleave
from minserve.clock import Clock, WallClock

Call = Callable[[], object]

MOST_COPIES = 256
_L2_TIMES = 4
"""All buffers together are this many times the L2 cache."""
_PAUSE_CYCLES = 20_000_000
"""About ten milliseconds of the device, during which the host queues every call of a round."""


class Budget:
    """Seconds that a part may take; it stops repeating when they are over."""

    def __init__(self, limit_s: float, clock: Clock) -> None:
        self.limit_s = limit_s
        self._clock = clock
        self._start_s = clock.now()

    @property
    def spent_s(self) -> float:
        """Seconds so far."""
        return self._clock.now() - self._start_s

    @property
    def left_s(self) -> float:
        """Seconds that remain, never below 0."""
        return max(0.0, self.limit_s - self.spent_s)

    @property
    def over(self) -> bool:
        """True if no time is left."""
        return self.left_s == 0.0


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    seconds: Spread
    how: str
    """"graph", "queue" or "clock"."""


class Event(Protocol):
    """A point in time on the device."""

    def record(self) -> None:
        """Record the event: it happens when everything queued so far is done."""
        ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to a later one; both must have happened."""
        ...


class ClockEvent:
    """An event without a device: it happens when it is recorded."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.at_s = 0.0

    def record(self) -> None:
        """See `Event`."""
        self.at_s = self._clock.now()

    def elapsed_time(self, end_event: ClockEvent) -> float:
        """See `Event`."""
        return 1e3 * (end_event.at_s - self.at_s)


def new_event(device: torch.device, clock: Clock) -> Event:
    """An event of this device."""
    if device.type == "cuda":
        event: Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        return event
    return ClockEvent(clock)


def num_copies(bytes_per_call: int, device: torch.device) -> int:
    """Number of sets of buffers to cycle through, so that none is still in the L2 cache when
    it is used again."""
    if device.type != "cuda":
        return 1
    properties = torch.cuda.get_device_properties(device)
    cache = getattr(properties, "L2_cache_size", 64 << 20)
    wanted = -(-_L2_TIMES * cache // max(1, bytes_per_call))
    return max(2, min(MOST_COPIES, wanted))


def race(
    sides: Mapping[str, Sequence[Call]],
    device: torch.device,
    rounds: int,
    uncapturable: frozenset[str] = frozenset(),
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Time every side, with a call for each set of buffers, in interleaved rounds.

    `uncapturable` names sides that wait for the host: they are queued, not captured.
    """
    clock = clock or WallClock()
    rounds_of: dict[str, Callable[[], float]] = {}
    how: dict[str, str] = {}
    for name, calls in sides.items():
        for call in calls:
            call()  # Compiles, and allocates what a capture needs.
        if device.type != "cuda":
            rounds_of[name], how[name] = _clocked(calls, clock), "clock"
            continue
        torch.cuda.synchronize(device)
        captured = None if name in uncapturable else _captured(calls, device)
        if captured is not None:
            rounds_of[name], how[name] = captured, "graph"
        else:
            rounds_of[name], how[name] = _queued(calls, device), "queue"
    warmup = rounds_of if device.type == "cuda" else {}
    found = interleave(rounds_of, rounds, warmup=warmup, progress=False)
    return {name: Timing(Spread.of(seconds), how[name]) for name, seconds in found.items()}


def _clocked(calls: Sequence[Call], clock: Clock) -> Callable[[], float]:
    def once() -> float:
        start = clock.now()
        for call in calls:
            call()
        return max(clock.now() - start, 1e-9) / len(calls)

    return once


def _captured(calls: Sequence[Call], device: torch.device) -> Callable[[], float] | None:
    """A round that replays a graph of all calls; None if they cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    kept: list[object] = []
    before = torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                kept.append(call())
    except RuntimeError:
        # A failed capture raises again when it ends, and leaves its own stream as the current one,
        # in which all later work would run.
        torch.cuda.set_stream(before)
        torch.cuda.synchronize(device)
        return None
    # Results are in the graph's own memory, and may be reused by the next capture once dropped.
    del kept

    def once() -> float:
        return _between(graph.replay, device) / len(calls)

    return once


def _queued(calls: Sequence[Call], device: torch.device) -> Callable[[], float]:
    def all_of_them() -> None:
        for call in calls:
            call()

    def once() -> float:
        torch.cuda.synchronize(device)
        torch.cuda._sleep(_PAUSE_CYCLES)  # type: ignore[no-untyped-call]
        return _between(all_of_them, device) / len(calls)

    return once


def _between(work: Call, device: torch.device) -> float:
    start, end = (new_event(device, WallClock()) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return max(1e-3 * start.elapsed_time(end), 1e-9)
