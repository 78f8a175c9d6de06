"""Recorded traffic: Mooncake's JSON lines as the canonical form, and readers of three other
formats.

A trace says when requests arrived, how long prompts and answers were and, in some formats, which
prompts share prefixes. It has no text: prompts are random tokens that share exactly the prefixes
given in the trace.
"""

from minserve.bench.workloads.traces.formats import (
    read_azure,
    read_burstgpt,
    read_sharegpt,
    read_trace,
)
from minserve.bench.workloads.traces.mooncake import read_mooncake, write_mooncake
from minserve.bench.workloads.traces.rows import TraceError, TraceRow, to_traffic

__all__ = [
    "TraceError",
    "TraceRow",
    "read_azure",
    "read_burstgpt",
    "read_mooncake",
    "read_sharegpt",
    "read_trace",
    "to_traffic",
    "write_mooncake",
]
