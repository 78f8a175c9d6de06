"""`minserve bench compare`: one base configuration against a few variants, over one workload.

The command that the playground shows for what it runs: on the virtual clock with the same numbers,
on the wall clock with rounds of its own, sides taking turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from minserve.bench.common import emit, print_table, versions
from minserve.bench.compare.code import encode
from minserve.bench.compare.setup import Setup, model_directory
from minserve.bench.compare.words import add_setup_arguments, setup_from
from minserve.bench.interleave import interleave, pairwise_ratio
from minserve.bench.metrics import serve_result
from minserve.bench.runs.serve import run_of
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import Traffic
from minserve.build import build_engine, build_virtual_engine
from minserve.engine import Engine
from minserve.hardware import describe_machine
from minserve.loading import LoadedModel, load_model

WATCHED = {"trace.per_request": True}
"""Times between tokens are read from the trace's detail."""
RATIOS = ("duration_s", "median_ttft_ms", "median_tpot_ms", "p99_itl_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench compare`."""
    add_setup_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="write the result there, not to stdout")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Run all sides and report: a table on stderr, JSON on stdout."""
    setup = setup_from(args)
    report = report_of(setup, progress=not args.no_progress)
    rows = [
        [
            name,
            *(_shown(side[key]) for key in ("duration_s", "median_ttft_ms", "p99_itl_ms")),
            f"{side['peak_kv_bytes_allocated']:,}",
        ]
        for name, side in report["sides"].items()
    ]
    kind = "modelled" if setup.clock == "virtual" else "measured"
    header = ["side", f"duration (s, {kind})", "TTFT, median (ms)", "ITL, p99 (ms)"]
    print_table([*header, "KV bytes, peak (counted)"], rows)
    if setup.clock == "wall" and setup.rounds < 3:
        print("fewer than 3 rounds: no verdict on any machine", file=sys.stderr)
    emit(report, args.json)
    return 0


def report_of(setup: Setup, *, progress: bool = False) -> dict[str, Any]:
    """What every side did, and on the wall clock its ratio to the base, round by round."""
    setup.check()
    traffic = setup.traffic()
    report: dict[str, Any] = {
        "benchmark": "compare",
        "code": encode(setup),
        "model_id": setup.model if setup.model.startswith("zoo/") or setup.shape else "own",
        "clock": setup.clock,
        "device_modelled": setup.gpu.device.name if setup.clock == "virtual" else None,
        "workload": traffic.name,
        "num_requests": len(traffic.requests),
        "request_rate": traffic.rate_per_s,
        "rounds": 1 if setup.clock == "virtual" else setup.rounds,
        "versions": versions(),
        "machine": describe_machine().to_dict(),
    }
    if setup.clock == "virtual":
        runs = {name: [_played(_virtual(setup, name), traffic)] for name in setup.names}
    else:
        loaded = {name: _loaded(setup, name) for name in setup.names}
        calls = {
            name: partial(_measured, setup, name, model, traffic) for name, model in loaded.items()
        }
        warm = {name: partial(_played, build_engine(loaded[name]), _first(traffic))
                for name in setup.names}  # fmt: skip
        runs = interleave(calls, setup.rounds, warmup=warm, progress=progress)
    report["sides"] = {name: _side(setup, name, each) for name, each in runs.items()}
    return report | {"times_base": _ratios(setup, runs)}


def _first(traffic: Traffic) -> Traffic:
    return Traffic(traffic.name, traffic.requests[:2], None, traffic.seed)


def _virtual(setup: Setup, name: str) -> Engine:
    config = setup.config(name).with_values(WATCHED)
    return build_virtual_engine(setup.spec(), config, setup.gpu.cost(), setup.model)


def _loaded(setup: Setup, name: str) -> LoadedModel:
    config = setup.config(name).with_values(WATCHED)
    model = setup.model if setup.model.startswith("zoo/") else model_directory(setup.model)
    return load_model(model, config, progress=False)


def _measured(setup: Setup, name: str, model: LoadedModel, traffic: Traffic) -> dict[str, Any]:
    before, wanted = torch.get_num_threads(), setup.config(name).kernels.num_threads
    try:
        torch.set_num_threads(wanted or before)
        return _played(build_engine(model), traffic)
    finally:
        torch.set_num_threads(before)


def _played(engine: Engine, traffic: Traffic) -> dict[str, Any]:
    """One run of one side."""
    done = drive(engine, traffic, fast=True)
    totals = engine.trace.totals
    return serve_result(run_of(engine, done)) | {
        "duration_s": totals.duration_s,
        "steps": totals.steps,
        "preemptions": totals.preemptions,
        "recomputed_tokens": totals.recomputed_tokens,
        "hit_tokens": totals.hit_tokens,
        "flops": totals.flops,
        "bytes": totals.bytes,
        "peak_kv_bytes_allocated": totals.peak_kv_bytes_allocated,
        "peak_kv_bytes_used": totals.peak_kv_bytes_used,
        "config": engine.config.config.with_values({"memory.disk_path": None}).to_dict(),
        "notes": list(engine.config.notes),
    }


def _side(setup: Setup, name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The round whose duration is the median, and the durations of all."""
    ordered = sorted(runs, key=lambda each: each["duration_s"])
    return {
        "changes": dict(setup.changes(name)),
        **ordered[(len(ordered) - 1) // 2],
        "durations_s": [each["duration_s"] for each in runs],
    }


def _ratios(setup: Setup, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    base = runs[setup.base_name]
    found: dict[str, Any] = {}
    for variant in setup.variants:
        for key in RATIOS:
            pairs = [(ours[key], theirs[key]) for ours, theirs in
                     zip(runs[variant.name], base, strict=True)]  # fmt: skip
            if all(ours and theirs for ours, theirs in pairs):
                ratio = pairwise_ratio(*map(list, zip(*pairs, strict=True)))
                found.setdefault(variant.name, {})[key] = vars(ratio)
    return found


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
