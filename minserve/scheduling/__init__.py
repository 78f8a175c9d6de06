"""Request scheduling (Miao et al., section 4.2.4): who computes how many tokens next."""

from minserve.scheduling.policy import (
    AdmissionError,
    ContinuousBatching,
    Policy,
    Room,
    StaticBatching,
)
from minserve.scheduling.scheduler import Scheduler, StepPlan

__all__ = [
    "AdmissionError",
    "ContinuousBatching",
    "Policy",
    "Room",
    "Scheduler",
    "StaticBatching",
    "StepPlan",
]
