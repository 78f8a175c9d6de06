"""The trace of a step: a `StepTrace`, put together from the parts of the rooms.

Counters are always present; per-request detail is kept if it is switched on. Knows nothing about
how steps are made or collected.
"""

from __future__ import annotations

from dataclasses import dataclass

from minserve.trace.parts import RoomParts
from minserve.trace.parts.arrivals import StepArrivals
from minserve.trace.parts.deliveries import StepDeliveries
from minserve.trace.parts.execution import StepExecution
from minserve.trace.parts.memory import StepMemory
from minserve.trace.parts.requests import StepRequests
from minserve.trace.parts.scheduling import StepScheduling
from minserve.trace.parts.stages import StepTiming
from minserve.trace.parts.work import CountedWork


# Python takes the fields of the last base first, so the columns come in the reverse of this order.
@dataclass(frozen=True, slots=True)
class StepTrace(
    RoomParts,
    StepArrivals,
    StepDeliveries,
    StepExecution,
    StepRequests,
    StepMemory,
    StepScheduling,
    CountedWork,
    StepTiming,
):
    """One engine step: which requests computed what, what they held, what it cost."""

    @property
    def num_rows(self) -> int:
        """Rows computed: tokens, tokens computed in vain, and padding."""
        return self.num_tokens + self.num_discarded_tokens + self.num_padded_rows
