"""`minserve bench`: which benchmark, and its arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

from minserve.bench import structured
from minserve.bench.commits import command as commits
from minserve.bench.compare import command as compare
from minserve.bench.gpu import command as gpu
from minserve.bench.http import overhead as http
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
from minserve.files.output_file import check_writable

BENCHMARKS = {
    "offline": (offline, "throughput over a workload that arrives at once"),
    "latency": (latency, "one request alone: time to first token, time per token"),
    "serve": (serve, "requests that arrive over time, here or on a modelled GPU"),
    "compare": (compare, "a base configuration against variants of it, on either clock"),
    "calibrate": (calibrate, "teach the virtual clock this machine, and check how honest it is"),
    "forward": (forward, "one token's forward pass beside another model's, as a draft's cost"),
    "verify": (verify, "a pass over the rows of a draft, chain and tree, beside one row"),
    "memory": (memory, "one trace in one KV budget: from reserved memory to pages, rung by rung"),
    "memory-sweep": (memory_sweep, "what pages gain as answers become alike in length"),
    "compile": (compilation, "what torch.compile costs, and after how many tokens it has paid"),
    "structured": (structured, "what a grammar costs per token, at two batch sizes"),
    "http": (http, "tokens per second through a server, streamed or not, beside none"),
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
    """Run the chosen benchmark; returns the exit code. Raises OutputError, before anything is
    measured, if its files cannot be written."""
    if getattr(args, "json", None) is not None:
        check_writable(Path(args.json), "--json")
    if args.benchmark == "calibrate" and args.out is not None:
        check_writable(Path(args.out), "--out")
    code: int = BENCHMARKS[args.benchmark][0].run(args)
    return code
