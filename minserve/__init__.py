"""minserve: a compact but complete LLM serving engine, made to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minserve.process.openmp import settle as _settle

OPENMP = _settle()
"""One sentence: how OpenMP's threads wait in this process. Set before anything else, because torch
reads it only once."""

__version__ = "0.1.0"

if TYPE_CHECKING:
    from minserve.async_llm import AsyncLLM
    from minserve.config import (
        ConfigError,
        EngineConfig,
        KernelsConfig,
        MemoryConfig,
        SchedulingConfig,
        TraceConfig,
    )
    from minserve.engine.pins import PinnedPrefix
    from minserve.engine.recovery import EngineError
    from minserve.frontend.outputs import StreamChunk
    from minserve.llm import LLM
    from minserve.request import (
        InvalidRequestError,
        Output,
        QueueFullError,
        SamplingParams,
        StructuredOutputs,
    )
    from minserve.trace import RunTrace

_HOMES = {
    "AsyncLLM": "async_llm",
    "ConfigError": "config",
    "EngineConfig": "config",
    "EngineError": "engine.recovery",
    "InvalidRequestError": "request",
    "KernelsConfig": "config",
    "LLM": "llm",
    "MemoryConfig": "config",
    "Output": "request",
    "PinnedPrefix": "engine.pins",
    "QueueFullError": "request",
    "RunTrace": "trace",
    "SamplingParams": "request",
    "SchedulingConfig": "config",
    "StreamChunk": "frontend.outputs",
    "StructuredOutputs": "request",
    "TraceConfig": "config",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "ConfigError",
    "EngineConfig",
    "EngineError",
    "InvalidRequestError",
    "KernelsConfig",
    "MemoryConfig",
    "Output",
    "PinnedPrefix",
    "QueueFullError",
    "RunTrace",
    "SamplingParams",
    "SchedulingConfig",
    "StreamChunk",
    "StructuredOutputs",
    "TraceConfig",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import minserve.trace` and `minserve --help` do
    # not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'minserve' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"minserve.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
