"""What one engine step tells: a `StepTrace`, put together from the parts of the rooms.

Counters are always there; per-request detail is kept when asked for. Knows nothing about how
steps are made, nor how they are collected.
"""

from __future__ import annotations

from dataclasses import dataclass

from minserve.trace.parts import RoomParts
from minserve.trace.parts.execution import StepExecution
from minserve.trace.parts.memory import StepMemory
from minserve.trace.parts.requests import StepRequests
from minserve.trace.parts.scheduling import StepScheduling
from minserve.trace.parts.stages import StepTiming
from minserve.trace.parts.work import CountedWork


# Python takes the fields of the last base first: this is the order of the columns, read backwards.
@dataclass(frozen=True, slots=True)
class StepTrace(
    RoomParts, StepExecution, StepRequests, StepMemory, StepScheduling, CountedWork, StepTiming
):
    """One engine step: which requests computed what, what they held, what it cost."""

    @property
    def num_rows(self) -> int:
        """Rows computed: tokens, those computed in vain, and padding."""
        return self.num_tokens + self.num_discarded_tokens + self.num_padded_rows
