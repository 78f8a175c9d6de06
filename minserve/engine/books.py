"""The state of one engine that recovery may have to repair: requests, queue, pages, steps in
flight.

After an error, recovery ends requests through this class, verifies that the parts of the state
agree, and if they do not, starts again with empty ones.
"""

from __future__ import annotations

import contextlib
from collections import deque

from minserve.engine.flight import Flight
from minserve.engine.record import Recorder
from minserve.engine.recovery import audit, describe
from minserve.engine.requests import LiveRequests
from minserve.execution.runner import Runner
from minserve.memory import KVManager
from minserve.request import Request
from minserve.scheduling import Scheduler


class EngineBooks:
    """The state of one engine ("books"), as recovery sees it: implements `Recoverable`."""

    def __init__(
        self,
        requests: LiveRequests,
        scheduler: Scheduler,
        memory: KVManager,
        in_flight: deque[Flight],
        runner: Runner,
        recorder: Recorder,
    ) -> None:
        self._requests = requests
        self._scheduler = scheduler
        self._memory = memory
        self._in_flight = in_flight
        self._runner = runner
        self._recorder = recorder

    def live_requests(self) -> list[Request]:
        """See `Recoverable.live_requests`."""
        return list(self._requests)

    def culprit(self) -> Request | None:
        """See `Recoverable.culprit`."""
        return self._scheduler.culprit

    def fail(self, request: Request, error: BaseException | None) -> None:
        """See `Recoverable.fail`."""
        self._requests.fail(request, error)

    def audit(self) -> None:
        """See `Recoverable.audit`."""
        audit(self._scheduler, self._memory, self._requests, self._in_flight)

    def start_over(self, error: BaseException | None) -> None:
        """See `Recoverable.start_over`."""
        while self._in_flight:
            flight = self._in_flight.popleft()
            with contextlib.suppress(Exception):
                self._runner.collect(flight.handle)
            self._memory.collected()
        # Does not read the clock: it may be what failed.
        num_ended = self._requests.end_all(error, self._recorder.end_s)
        self._scheduler.clear()
        self._memory.reset()
        self._recorder.trace.note(
            f"after an error nothing was certain any more: {num_ended} requests were ended and the "
            f"prefix cache was emptied ({describe(error)})"
        )
