"""Open loop: requests arrive at given times, on this machine or on the clock of a modelled one.

`minserve bench serve` plays drawn or recorded traffic against the engine in this process (no HTTP
in between) and reports the same figures as `vllm bench serve`. With `--modelled` the same scheduler
and page pool run on modelled time, so that an hour of an H100's traffic takes a minute. With
`--url` the same traffic goes to a server over HTTP (`bench.http`).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from minserve.bench.common import (
    Race,
    add_common_arguments,
    config_from,
    emit,
    frame,
    open_race,
)
from minserve.bench.http.command import add_http_arguments, refuse_http_options, run_http
from minserve.bench.metrics import Run, Slo, serve_result
from minserve.bench.workloads import conversations, length_draws
from minserve.bench.workloads.arrivals import Arrivals, gamma_arrivals, on_off_arrivals
from minserve.bench.workloads.drive import DriveResult, drive
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traces import read_trace, to_traffic
from minserve.bench.workloads.traffic import Traffic, traffic
from minserve.build import build_engine, build_virtual_engine
from minserve.clock import WallClock
from minserve.config import ConfigError, EngineConfig
from minserve.engine import Engine
from minserve.hardware import find_device
from minserve.loading import find_model, load_model
from minserve.models import load_spec
from minserve.trace.summary import inter_token_latencies
from minserve.virtual.costs import CostModel

DEFAULT_RATE = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench serve`."""
    add_common_arguments(parser)
    add = parser.add_argument
    add("--num-prompts", type=int, default=200, help="requests (default: %(default)s)")
    add("--request-rate", type=float, help=f"mean per second (default: {DEFAULT_RATE:g})")
    add(
        "--burstiness",
        type=float,
        default=1.0,
        help="shape of the gamma distribution of gaps: 1 is Poisson, below 1 is bursty "
        "(default: %(default)s)",
    )
    add(
        "--on-off",
        type=float,
        nargs=2,
        metavar=("ON", "OFF"),
        help="arrivals in turns on and off, each so many mean gaps long; instead of --burstiness",
    )
    add("--input-len", type=int, default=128, help="mean prompt tokens (default: %(default)s)")
    add("--output-len", type=int, default=64, help="mean new tokens (default: %(default)s)")
    add(
        "--lengths",
        choices=("fixed", "exponential", "lognormal", "pareto"),
        default="exponential",
        help="distribution of both (default: %(default)s)",
    )
    add(
        "--prefixes",
        choices=("none", "shared", "few-shot", "multi-turn", "agent-tree"),
        default="none",
        help="what prompts have in common (default: %(default)s)",
    )
    add("--trace", metavar="FILE", help="recorded traffic: Mooncake, Azure, BurstGPT, ShareGPT")
    add(
        "--goodput",
        nargs="+",
        default=[],
        metavar="LIMIT",
        help="count requests within these limits, in ms: ttft:200 tpot:50 e2el:5000",
    )
    add("--modelled", metavar="GPU", help="on modelled time, on this GPU of the table")
    add(
        "--efficiency",
        type=float,
        default=0.5,
        help="share of the roofline that the modelled GPU reaches (default: %(default)s)",
    )
    add(
        "--overhead-ms",
        type=float,
        default=0.2,
        help="per step of the modelled GPU (default: %(default)s)",
    )
    add_http_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Play and report."""
    if args.url is not None:
        return run_http(args, traffic_from)
    refuse_http_options(args)
    if args.request_rate is not None and math.isinf(args.request_rate):
        raise ConfigError(
            "--request-rate inf is for playing over HTTP: add --url http://HOST:PORT, or give a "
            "number (bench offline has requests that all arrive at once)"
        )
    slo = Slo.parse(args.goodput)
    wall = WallClock()
    with _modelled(args) if args.modelled else open_race(args) as race:
        config = config_from(args)
        engine = _virtual(args, config) if args.modelled else _real(race, config)
        traffic_ = traffic_from(args, engine.max_request_tokens - 1)
        start_s = wall.now()
        result = drive(engine, traffic_, fast=True)
        host_s = wall.now() - start_s
        report = frame(
            race,
            "serve",
            num_prompts=len(traffic_.requests),
            request_rate=traffic_.rate_per_s,
            burstiness=args.burstiness,
            workload=traffic_.name,
            config=engine.config.config.to_dict(),
            device_modelled=args.modelled,
        )
        report |= serve_result(run_of(engine, result), slo)
        totals = engine.trace.totals
        report |= {
            "steps": totals.steps,
            "preemptions": totals.preemptions,
            "host_seconds": host_s,
            "steps_per_host_second": totals.steps / host_s,
            "request_tokens_per_host_second": totals.scheduled / host_s,
        }
    _print(report)
    emit(report, args.json)
    return 0


def traffic_from(args: argparse.Namespace, most: int) -> Traffic:
    """The traffic given by the arguments; no request is longer than `most` tokens."""
    rate = args.request_rate
    if rate is not None and not rate > 0:
        raise ConfigError(f"--request-rate {rate}: expected a positive number of requests/s")
    if rate is None or math.isinf(rate):
        rate = None  # `bench.http` sends without a schedule; what is drawn keeps its own
    if args.trace:
        read = to_traffic(read_trace(args.trace), name=args.trace, max_len=most, seed=args.seed)
        return read if rate is None else replace(read, rate_per_s=rate)
    draw = getattr(length_draws, args.lengths)
    limit = {} if args.lengths == "fixed" else {"at_most": most // 2}
    prompts, outputs = draw(args.input_len, **limit), draw(args.output_len, **limit)
    half = max(1, args.input_len // 2)
    jobs = {
        "none": lambda: conversations.independent(prompts, outputs),
        "shared": lambda: conversations.shared_prefix(half, draw(half, **limit), outputs, 4),
        "few-shot": lambda: conversations.few_shot(
            8, length_draws.fixed(max(1, half // 4)), 2, draw(half, **limit), outputs
        ),
        "multi-turn": lambda: conversations.multi_turn(
            3, length_draws.uniform(1, most // 8), length_draws.uniform(1, most // 8)
        ),
        "agent-tree": lambda: conversations.agent_tree(
            3, 3, length_draws.uniform(1, most // 8), outputs
        ),
    }[args.prefixes]()
    arrivals: Arrivals = (
        on_off_arrivals(*args.on_off) if args.on_off else gamma_arrivals(args.burstiness)
    )
    coming = f"on/off {args.on_off}" if args.on_off else f"burstiness {args.burstiness}"
    name = f"{args.lengths} {args.input_len} in, {args.output_len} out, {args.prefixes}, {coming}"
    return traffic(jobs, args.num_prompts, rate or DEFAULT_RATE, arrivals, args.seed, name)


@contextlib.contextmanager
def _modelled(args: argparse.Namespace) -> Iterator[Race]:
    """On modelled time nothing is computed, so a shape needs no weights."""
    if args.model:
        model = find_model(args.model)
        yield Race(args, model, model.name, False)
    else:
        yield Race(args, Path(), f"{args.shape} (no weights)", True)


def _real(race: Race, config: EngineConfig) -> Engine:
    # Times between tokens are read from the trace's detail.
    return build_engine(load_model(race.model, config.with_values({"trace.per_request": True})))


def _virtual(args: argparse.Namespace, config: EngineConfig) -> Engine:
    device = find_device(args.modelled)
    if device is None:
        raise ConfigError(f"--modelled {args.modelled}: there is no such GPU in the table")
    spec = load_spec(find_model(args.model)) if args.model else SHAPES[args.shape].spec()
    cost = CostModel(device, "bfloat16", args.efficiency, args.overhead_ms / 1e3)
    return build_virtual_engine(spec, config, cost, args.model or args.shape)


def run_of(engine: Engine, result: DriveResult) -> Run:
    """A drive's result in the form of the metrics: requests that ended well, and
    how many did not."""
    done = [r for r in result.requests if r.finish_reason in ("stop", "length")]
    return Run(
        duration_s=result.duration_s,
        token_ids=tuple(tuple(r.output_token_ids) for r in done),
        num_input_tokens=sum(r.num_prompt_tokens for r in done),
        metrics=tuple(r.metrics() for r in done),
        itl_s=tuple(inter_token_latencies(engine.trace.steps)),
        num_failed=len(result.requests) - len(done) + len(result.refused),
        num_refused=len(result.refused),
    )


def _print(report: dict[str, Any]) -> None:
    def line(name: str, key: str, unit: str) -> None:
        if report.get(key) is not None:
            print(f"{name:32}{report[key]:12.4g} {unit}", file=sys.stderr)

    line("requests completed", "completed", "")
    if report["refused"]:
        line("refused, the queue was full", "refused", "")
    line("duration", "duration", "s" + (" (modelled)" if report["device_modelled"] else ""))
    line("output tokens", "output_throughput", "tokens/s")
    line("goodput", "request_goodput", "requests/s")
    for key in ("ttft", "tpot", "itl", "e2el"):
        line(f"median {key.upper()}", f"median_{key}_ms", "ms")
        line(f"p99 {key.upper()}", f"p99_{key}_ms", "ms")
    if report["device_modelled"]:
        line("computed in", "host_seconds", "s")
        line("request-tokens (events)", "request_tokens_per_host_second", "/s")
        line("steps", "steps_per_host_second", "/s")
