"""Request scheduling (Miao et al., section 3.2.4): which requests compute how many tokens next."""

from minserve.scheduling.answers import HookError
from minserve.scheduling.plan import StepPlan
from minserve.scheduling.policies.batching import (
    AdmissionError,
    AdmissionView,
    BatchingPolicy,
    ContinuousBatching,
    StaticBatching,
)
from minserve.scheduling.policies.chosen import Policies
from minserve.scheduling.policies.entry import QueueEntry
from minserve.scheduling.policies.lengths import LengthOracle, LengthPredictor
from minserve.scheduling.policies.queueing import (
    LongestPrefixFirst,
    MultiLevelFeedback,
    PriorityFirst,
    QueuePolicy,
    ShortestFirst,
)
from minserve.scheduling.scheduler import Scheduler
from minserve.scheduling.waiting import WaitingQueue

__all__ = [
    "AdmissionError",
    "AdmissionView",
    "BatchingPolicy",
    "ContinuousBatching",
    "HookError",
    "LengthOracle",
    "LengthPredictor",
    "LongestPrefixFirst",
    "MultiLevelFeedback",
    "Policies",
    "PriorityFirst",
    "QueueEntry",
    "QueuePolicy",
    "Scheduler",
    "ShortestFirst",
    "StaticBatching",
    "StepPlan",
    "WaitingQueue",
]
