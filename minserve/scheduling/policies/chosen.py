"""The policies of one scheduler: the ones named in the configuration, or the caller's own."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config import ResolvedConfig
from minserve.scheduling.policies.batching import POLICIES, BatchingPolicy
from minserve.scheduling.policies.lengths import LengthOracle, LengthPredictor
from minserve.scheduling.policies.queueing import ORDERS, QueuePolicy
from minserve.scheduling.policies.turns import RANKED_TURNS, TURNS, Turn
from minserve.scheduling.policies.victims import VICTIMS, Victim


@dataclass(frozen=True)
class Policies:
    """The decisions that the scheduler delegates to small objects."""

    batching: BatchingPolicy
    order: QueuePolicy
    predictor: LengthPredictor
    turns: tuple[Turn, ...]
    victim: Victim

    @classmethod
    def of(
        cls,
        config: ResolvedConfig,
        batching: BatchingPolicy | None = None,
        order: QueuePolicy | None = None,
        predictor: LengthPredictor | None = None,
    ) -> Policies:
        """The policies named in the configuration; an object given here replaces the configured
        one."""
        scheduling = config.config.scheduling
        # By `is None`: an object of the caller's may be false, such as an empty queue.
        if order is None:
            order = ORDERS[scheduling.order].from_config(config)
        if batching is None:
            batching = POLICIES[scheduling.policy].from_config(config)
        if predictor is None:
            predictor = LengthOracle(scheduling.length_error, config.config.seed)
        turns = RANKED_TURNS if order.preemptive else TURNS
        return cls(
            batching, order, predictor, turns[scheduling.prefill], VICTIMS[scheduling.victim]
        )
