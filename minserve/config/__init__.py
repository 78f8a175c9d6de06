"""The engine's configuration: its fields, their metadata, and what they resolve to."""

from minserve.config.admission import AdmissionConfig
from minserve.config.knobs import ConfigError, Knob
from minserve.config.resolve import ResolvedConfig
from minserve.config.sections import (
    DTYPES,
    EngineConfig,
    KernelsConfig,
    MemoryConfig,
    SchedulingConfig,
    TraceConfig,
    describe,
)

__all__ = [
    "DTYPES",
    "AdmissionConfig",
    "ConfigError",
    "EngineConfig",
    "KernelsConfig",
    "Knob",
    "MemoryConfig",
    "ResolvedConfig",
    "SchedulingConfig",
    "TraceConfig",
    "describe",
]
