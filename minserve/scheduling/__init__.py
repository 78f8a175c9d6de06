"""Request scheduling (Miao et al., section 4.2.4): which requests compute how many tokens next."""

from minserve.scheduling.answers import HookError
from minserve.scheduling.plan import StepPlan
from minserve.scheduling.policies.batching import (
    AdmissionError,
    ContinuousBatching,
    Policy,
    Room,
    StaticBatching,
)
from minserve.scheduling.policies.lengths import LengthOracle, LengthPredictor
from minserve.scheduling.policies.queue_order import (
    LongestPrefixFirst,
    MultiLevelFeedback,
    Order,
    PriorityFirst,
    ShortestFirst,
)
from minserve.scheduling.scheduler import Scheduler
from minserve.scheduling.waiting import WaitingQueue

__all__ = [
    "AdmissionError",
    "ContinuousBatching",
    "HookError",
    "LengthOracle",
    "LengthPredictor",
    "LongestPrefixFirst",
    "MultiLevelFeedback",
    "Order",
    "Policy",
    "PriorityFirst",
    "Room",
    "Scheduler",
    "ShortestFirst",
    "StaticBatching",
    "StepPlan",
    "WaitingQueue",
]
