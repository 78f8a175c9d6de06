"""`RunTrace`: the bounded record of a run, written by one engine while others read it.

The newest steps and finished requests are kept in rings; running totals count them all. Readers
take a `TraceSnapshot` and work on that. Knows nothing about how steps are made or drawn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from minserve.request import FinishReason, RequestMetrics
from minserve.trace.formats import chrome, export, frames, reading
from minserve.trace.snapshot import FinishedRequest, TraceHeader, TraceSnapshot
from minserve.trace.step import StepTrace
from minserve.trace.summary import RunSummary, summarize
from minserve.trace.tail import Tail
from minserve.trace.tally import Tally
from minserve.trace.totals import RunTotals

if TYPE_CHECKING:
    import pandas

Row = TypeVar("Row")


class RunTrace:
    """The trace of one run: one writer (the engine), any number of readers, from any thread.

    Keeps the newest `max_steps` steps and `max_requests` finished requests; `totals` count all.
    """

    def __init__(
        self,
        max_steps: int = 100_000,
        max_requests: int = 100_000,
        header: TraceHeader | None = None,
    ) -> None:
        if max_steps < 1 or max_requests < 1:
            raise ValueError(
                f"RunTrace(max_steps={max_steps}, max_requests={max_requests}): expected at least "
                "1 each"
            )
        self.header = header if header is not None else TraceHeader()
        self._steps: deque[StepTrace] = deque(maxlen=max_steps)
        self._requests: deque[FinishedRequest] = deque(maxlen=max_requests)
        self._tally = Tally()
        # A deque must not be iterated while it grows; the lock is held for the copy, never for an
        # export. Reentrant, because a signal handler may read a trace while it is being written.
        self._lock = threading.RLock()
        self._tails: tuple[Tail, ...] = ()
        self._ended_before = 0  # finished requests when the newest step was added

    def append(self, step: StepTrace) -> None:
        """Add the newest step; if the ring is full, the oldest is dropped. Raises TypeError for
        anything else than a step, and then changes nothing."""
        if not isinstance(step, StepTrace):
            raise TypeError(f"RunTrace.append: expected a StepTrace, got {type(step).__name__}")
        with self._lock:
            if self._tails and len(self._steps) == self._steps.maxlen:
                for tail in self._tails:
                    tail.dropping_step(self._tally.steps - len(self._steps), self._steps[0])
            self._tally.add_step(step)
            self._steps.append(step)
            self._ended_before = self._tally.finished_requests

    def finish_request(
        self,
        request_id: str,
        sample_index: int,
        metrics: RequestMetrics,
        finish_reason: FinishReason,
    ) -> None:
        """Add a sample that ended, for whatever reason. Raises TypeError for other metrics than
        those of a request, and then changes nothing."""
        if not isinstance(metrics, RequestMetrics):
            raise TypeError(
                "RunTrace.finish_request: expected RequestMetrics, got " + type(metrics).__name__
            )
        record = FinishedRequest(request_id, sample_index, finish_reason, metrics)
        with self._lock:
            if self._tails and len(self._requests) == self._requests.maxlen:
                number = self._tally.finished_requests - len(self._requests)
                for tail in self._tails:
                    tail.dropping_request(number, self._requests[0])
            self._tally.add_request(metrics)
            self._requests.append(record)

    def note(self, sentence: str) -> None:
        """Add a sentence to the header's notes: something a reader of the figures should know."""
        with self._lock:
            self.header = replace(self.header, notes=(*self.header.notes, sentence))

    @property
    def max_steps(self) -> int:
        """Most steps kept."""
        return self._steps.maxlen or 0

    @property
    def max_requests(self) -> int:
        """Most finished requests kept."""
        return self._requests.maxlen or 0

    @property
    def steps(self) -> tuple[StepTrace, ...]:
        """The kept steps, oldest first: a copy."""
        with self._lock:
            return tuple(self._steps)

    @property
    def newest(self) -> StepTrace | None:
        """The newest step; None before the first."""
        with self._lock:
            return self._steps[-1] if self._steps else None

    @property
    def requests(self) -> tuple[FinishedRequest, ...]:
        """The kept finished requests, in the order they finished: a copy."""
        with self._lock:
            return tuple(self._requests)

    @property
    def totals(self) -> RunTotals:
        """Sums and peaks over all steps so far: a copy."""
        with self._lock:
            return self._tally.totals()

    def __len__(self) -> int:
        return len(self._steps)

    def since(self, position: int) -> tuple[tuple[StepTrace, ...], int]:
        """Steps appended after the first `position` ones, and the position for the next call.

        For live readers: start at 0. Steps that were already dropped from the ring are skipped.
        """
        with self._lock:
            appended = self._tally.steps
            return _last(self._steps, appended - position), appended

    def load(self) -> tuple[int, int]:
        """How many requests run and wait, as far as the trace knows: those of the newest step, and
        none if as many have ended since."""
        with self._lock:
            newest = self.newest
            ended = self._tally.finished_requests - self._ended_before
            if newest is None or ended >= newest.num_running + newest.num_waiting:
                return 0, 0
            return newest.num_running, newest.num_waiting

    def follow(
        self,
        read_step: Callable[[StepTrace], None],
        read_request: Callable[[FinishedRequest], None],
    ) -> Tail:
        """A reader that gets every step and every finished request once, each kind in its order,
        from the oldest kept ones: those that are here at each `Tail.catch_up`, and those that the
        rings are about to drop. Both functions must be quick, and must not use the trace."""
        with self._lock:
            first_request = self._tally.finished_requests - len(self._requests)
            first_step = self._tally.steps - len(self._steps)
            tail = Tail(self._unread, read_step, read_request, first_step, first_request)
            self._tails = (*self._tails, tail)
            return tail

    @contextmanager
    def _unread(
        self, step: int, request: int
    ) -> Iterator[tuple[tuple[StepTrace, ...], tuple[FinishedRequest, ...], int, int]]:
        """The kept steps and finished requests from these numbers on, and the numbers of the next
        ones. The trace does not change until the context ends."""
        with self._lock:
            steps, requests = self._tally.steps, self._tally.finished_requests
            new_steps = _last(self._steps, steps - step)
            yield new_steps, _last(self._requests, requests - request), steps, requests

    def snapshot(self) -> TraceSnapshot:
        """Everything at one moment, for exports and figures."""
        with self._lock:
            return TraceSnapshot(
                header=self.header,
                totals=self._tally.totals(),
                steps=tuple(self._steps),
                requests=tuple(self._requests),
                max_steps=self.max_steps,
                max_requests=self.max_requests,
            )

    def restore(
        self,
        totals: RunTotals,
        steps: Iterable[StepTrace],
        requests: Iterable[FinishedRequest],
    ) -> None:
        """Replace everything with what was recorded elsewhere; for readers of files."""
        with self._lock:
            self._tally = Tally(totals)
            self._steps.clear()
            self._steps.extend(steps)
            self._requests.clear()
            self._requests.extend(requests)
            self._ended_before = totals.finished_requests

    def summary(self) -> RunSummary:
        """The usual figures of a run: latencies, throughput, memory, preemptions."""
        return summarize(self.snapshot())

    def to_json(self, path: str | Path | None = None) -> str:
        """The trace as JSON text; also written to `path`, compressed if it ends in .gz."""
        return export.to_json(self.snapshot(), path)

    @classmethod
    def from_json(cls, source: str | Path) -> RunTrace:
        """A trace from JSON text or from a file written by `to_json`.

        Raises TraceFormatError (a ValueError) for anything else, or for an unknown version.
        """
        read = reading.from_json(source)
        trace = cls(read.max_steps, read.max_requests, read.header)
        trace.restore(read.totals, read.steps, read.requests)
        return trace

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per kept step, all counters as columns. Raises ImportError without pandas."""
        return frames.steps_dataframe(self.snapshot())

    def requests_dataframe(self) -> pandas.DataFrame:
        """One row per kept finished request. Raises ImportError without pandas."""
        return frames.requests_dataframe(self.snapshot())

    def to_chrome_trace(self, path: str | Path) -> None:
        """Write a file that ui.perfetto.dev and chrome://tracing open."""
        chrome.write(self.snapshot(), path)


def _last(ring: deque[Row], count: int) -> tuple[Row, ...]:
    """The newest `count` rows, or as many as there are, oldest first."""
    return tuple(reversed(tuple(islice(reversed(ring), max(0, count)))))
