"""`minserve bench`: which benchmark, and its arguments."""

from __future__ import annotations

import argparse

from minserve.bench.commits import command as commits
from minserve.bench.gpu import command as gpu
from minserve.bench.modelling import calibrate
from minserve.bench.runs import (
    busy,
    compilation,
    forward,
    latency,
    memory,
    memory_sweep,
    offline,
    serve,
    sessions,
    verify,
)

BENCHMARKS = {
    "offline": (offline, "throughput over a workload that arrives at once"),
    "latency": (latency, "one request alone: time to first token, time per token"),
    "serve": (serve, "requests that arrive over time, here or on a modelled GPU"),
    "calibrate": (calibrate, "teach the virtual clock this machine, and check how honest it is"),
    "forward": (forward, "one token's forward pass beside another model's, as a draft's cost"),
    "verify": (verify, "a pass over the rows of a draft, chain and tree, beside one row"),
    "memory": (memory, "one trace in one KV budget: from reserved memory to pages, rung by rung"),
    "memory-sweep": (memory_sweep, "what pages gain as answers become alike in length"),
    "compile": (compilation, "what torch.compile costs, and after how many tokens it has paid"),
    "sessions": (sessions, "idle conversations in device, host and disk, and what resuming costs"),
    "busy": (busy, "tokens per second beside busy programs, by how threads wait"),
    "commits": (commits, "CPU time of two checkouts of this repository, in interleaved pairs"),
    "gpu": (gpu, "everything that is measured on a GPU, part by part, into labs/recorded"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A sub-command per benchmark."""
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, (module, text) in BENCHMARKS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        module.add_arguments(command)


def run(args: argparse.Namespace) -> int:
    """Run the chosen benchmark; returns the exit code."""
    code: int = BENCHMARKS[args.benchmark][0].run(args)
    return code
