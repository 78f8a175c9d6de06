"""The parts of an engine that a caller may replace by objects of its own."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config import ResolvedConfig
from minserve.scheduling import BatchingPolicy, LengthPredictor, Policies, QueuePolicy


@dataclass(frozen=True)
class EngineParts:
    """Objects that stand in for those that the configuration names; None: the configuration's own.

    A new part is a field here, and is read where the engine is put together.
    """

    policy: BatchingPolicy | None = None
    """For `scheduling.policy`: which requests may join a step's batch."""
    order: QueuePolicy | None = None
    """For `scheduling.order`: which request goes first."""
    predictor: LengthPredictor | None = None
    """For the oracle of fixed lengths: how long an answer will be. Asked by orders that need it."""

    def policies(self, config: ResolvedConfig) -> Policies:
        """What the scheduler is made with."""
        return Policies.of(config, self.policy, self.order, self.predictor)


CONFIGURED = EngineParts()
"""Every part as the configuration names it."""
