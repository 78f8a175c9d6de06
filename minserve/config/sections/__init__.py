"""The sections of `EngineConfig`: the switches of each room, documented where they are declared.

One file per room, with the room's name. Knows nothing about how a switch is implemented, nor which
switches can be combined: that is in `minserve.config.rules`.
"""

from minserve.config.sections.admission import AdmissionConfig
from minserve.config.sections.kernels import KernelsConfig
from minserve.config.sections.memory import MemoryConfig
from minserve.config.sections.quantization import QuantizationConfig
from minserve.config.sections.scheduling import SchedulingConfig
from minserve.config.sections.trace import TraceConfig

__all__ = [
    "AdmissionConfig",
    "KernelsConfig",
    "MemoryConfig",
    "QuantizationConfig",
    "SchedulingConfig",
    "TraceConfig",
]
