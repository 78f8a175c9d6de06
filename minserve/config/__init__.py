"""The engine's configuration: its fields, their metadata, and what they resolve to.

`knobs` says what a field is, `sections` declares them by room, `engine` puts them together. `rules`
says by room what goes together, `question` what a rule is asked, `resolve` asks them all.
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
