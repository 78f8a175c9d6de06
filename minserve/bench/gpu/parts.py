"""The parts of the suite: what each shows, and the seconds it may take on an H100 or H200.

Limits come from rooflines: bytes or FLOPs of a run divided by the data sheet's rates, times
a factor for a first implementation, plus ten seconds for a process to start. The parts that
run by default take less than nine minutes in total. A part over its limit stops repeating,
and is not cut off.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minserve.bench.gpu.setting import CEILINGS, Setting

TOTAL_S = 535.0
"""Seconds of all parts together, process starts included."""
GRACE_S = 8.0
"""A part that still runs this many seconds after its limit is killed."""


@dataclass(frozen=True)
class Part:
    """One part of the suite."""

    name: str
    title: str
    limit_s: float

    @property
    def run(self) -> Callable[[Setting], None]:
        """The `run` function of its module, which is imported only when it runs."""
        module: Any = importlib.import_module(f"minserve.bench.gpu.suite.{self.name}")
        function: Callable[[Setting], None] = module.run
        return function


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(CEILINGS, "what the device reaches: bandwidth and matrix products", 20.0),
        Part("kernels", "each kernel against the limits and against torch, and its tests", 120.0),
        Part("stream", "one request alone, 7B, 0.6B and 8B shapes", 45.0),
        Part("throughput", "the nano-vllm workload, and transformers on it", 150.0),
        Part("prefill", "one prompt of 2k to 32k tokens, 8B shape", 35.0),
        Part("ladder", "from torch operators to overlap, step by step", 55.0),
        Part("chapters", "what the chapters compare, recorded", 40.0),
        Part("tune", "tiles of attention, timed once per card and kept on its disk", 500.0),
        Part("virtual_clock", "the virtual clock taught this device, and its error", 60.0),
    )
}

DEFAULT = tuple(name for name in PARTS if name != "tune")
"""The parts that run by default. Tuning compiles for minutes, once per GPU, and runs
only if it is named."""
