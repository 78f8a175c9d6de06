"""The parts of an engine that a caller may replace with objects of its own."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config import ConfigError, Facts, ResolvedConfig
from minserve.decoding import Proposer
from minserve.inputs.checks import shorten
from minserve.scheduling import BatchingPolicy, LengthPredictor, Policies, QueuePolicy


@dataclass(frozen=True)
class EngineParts:
    """Objects that replace the ones named in the configuration; None: use the configuration's own.

    A part belongs to one engine: it may keep state of that engine's requests. A new part is a field
    here, and is read in the code that builds the engine.
    """

    policy: BatchingPolicy | None = None
    """Replaces `scheduling.policy`: which requests may join a step's batch."""
    order: QueuePolicy | None = None
    """Replaces `scheduling.order`: which request goes first."""
    predictor: LengthPredictor | None = None
    """Replaces the oracle of fixed lengths: predicts the length of an answer, for orders that need
    it."""
    proposer: Proposer | None = None
    """Drafts tokens, which the model verifies several at a time (speculative decoding)."""

    def __post_init__(self) -> None:
        for name, value, expected in (
            ("policy", self.policy, BatchingPolicy),
            ("order", self.order, QueuePolicy),
            ("proposer", self.proposer, Proposer),
        ):
            if value is not None and not isinstance(value, expected):
                raise ConfigError(
                    f"EngineParts({name}={shorten(value)}): expected an object of a class that "
                    f"derives from {expected.__name__}, or None"
                )
        predicts = callable(getattr(self.predictor, "predict", None))
        if self.predictor is not None and (isinstance(self.predictor, type) or not predicts):
            raise ConfigError(
                f"EngineParts(predictor={shorten(self.predictor)}): expected an object with a "
                "method predict(request), or None"
            )

    @property
    def facts(self) -> Facts:
        """What the compatibility rules must know of these parts."""
        return Facts(
            own_order=None if self.order is None else self.order.traits(),
            own_predictor=self.predictor is not None,
            proposer=None if self.proposer is None else type(self.proposer).__name__,
            proposes_trees=self.proposer is not None and self.proposer.proposes_trees,
        )

    def policies(self, config: ResolvedConfig) -> Policies:
        """The policies that the scheduler is made with."""
        return Policies.of(config, self.policy, self.order, self.predictor)


CONFIGURED = EngineParts()
"""Every part as the configuration names it."""
