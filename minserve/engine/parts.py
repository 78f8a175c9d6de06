"""The parts of an engine that a caller may replace with objects of its own."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config import ResolvedConfig
from minserve.scheduling import BatchingPolicy, LengthPredictor, Policies, QueuePolicy


@dataclass(frozen=True)
class EngineParts:
    """Objects that replace the ones named in the configuration; None: use the configuration's own.

    A new part is a field here, and is read in the code that builds the engine.
    """

    policy: BatchingPolicy | None = None
    """Replaces `scheduling.policy`: which requests may join a step's batch."""
    order: QueuePolicy | None = None
    """Replaces `scheduling.order`: which request goes first."""
    predictor: LengthPredictor | None = None
    """Replaces the oracle of fixed lengths: predicts the length of an answer, for orders that need
    it."""

    def policies(self, config: ResolvedConfig) -> Policies:
        """The policies that the scheduler is made with."""
        return Policies.of(config, self.policy, self.order, self.predictor)


CONFIGURED = EngineParts()
"""Every part as the configuration names it."""
