"""Recorded traffic: Mooncake's JSON lines as the canonical form, and readers of three others.

A trace says when requests came, how long prompts and answers were and, where it tells, which
prompts share prefixes. It never has the text: prompts are made of random tokens that share exactly
what the trace says is shared.
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
