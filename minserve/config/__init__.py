"""The engine's configuration: its fields, their metadata, and how it is resolved.

`knobs` defines what a field is, `sections` declares the fields by room, and `engine` puts them
together. `rules` says, by room, which values can be combined; `question` defines the input and
output of a rule; `resolve` applies all rules.
"""

from minserve.config.engine import DTYPES, EngineConfig, describe
from minserve.config.knobs import ConfigError, Knob
from minserve.config.question import Facts, OrderTraits
from minserve.config.resolve import resolve
from minserve.config.resolved import ResolvedConfig
from minserve.config.sections import (
    AdmissionConfig,
    KernelsConfig,
    MemoryConfig,
    SchedulingConfig,
    TraceConfig,
)

__all__ = [
    "DTYPES",
    "AdmissionConfig",
    "ConfigError",
    "EngineConfig",
    "Facts",
    "KernelsConfig",
    "Knob",
    "MemoryConfig",
    "OrderTraits",
    "ResolvedConfig",
    "SchedulingConfig",
    "TraceConfig",
    "describe",
    "resolve",
]
