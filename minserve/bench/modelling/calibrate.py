"""`minserve bench calibrate`: fits the virtual clock to this machine, and measures its error.

Records runs of the real engine, fits the cost of a step, and writes it to a small file. With
`--check`, traffic of another shape is also served, here and on the virtual clock, and the latencies
are compared. The machine must be quiet for both. Even then the speed of a shared machine changes
within seconds by more than the promised error, so both kinds of traffic take turns.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from minserve.bench.common import (
    add_common_arguments,
    config_from,
    emit,
    frame,
    open_race,
    print_table,
)
from minserve.bench.interleave import interleave
from minserve.bench.metrics import Run, pooled, serve_result
from minserve.bench.modelling.fitted_cost import FittedCost, Machine, fit
from minserve.bench.runs.serve import run_of
from minserve.bench.workloads import conversations, length_draws
from minserve.bench.workloads.arrivals import gamma_arrivals
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length, traffic
from minserve.build import build_engine, build_virtual_engine
from minserve.files.cache_dir import cache_directory, secure
from minserve.files.output_file import writing
from minserve.hardware import describe_machine
from minserve.loading import LoadedModel, load_model
from minserve.trace import StepTrace

PROMISES: dict[str, float] = {
    "median_ttft_ms": 0.10,
    "median_tpot_ms": 0.10,
    "output_throughput": 0.10,
    "p99_ttft_ms": 0.25,
    "p99_tpot_ms": 0.25,
}
"""Largest relative error that we promise for the virtual clock."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench calibrate`."""
    add_common_arguments(parser)
    parser.set_defaults(model="zoo/base", repeats=6)
    parser.add_argument(
        "--check", action="store_true", help="compare with this machine on other traffic as well"
    )
    parser.add_argument("--out", metavar="FILE", help="default: the cache directory of this user")


def run(args: argparse.Namespace) -> int:
    """Calibrate, and check if asked; returns 1 if a promise is not kept."""
    with open_race(args) as race:
        config = config_from(args, scheduling__max_num_seqs=32, scheduling__max_model_len=1024)
        loaded = load_model(race.model, config)
        calibrations, others = (itertools.count(args.seed) for _ in range(2))
        sides: dict[str, Callable[[], Any]] = {
            "calibration": lambda: record(loaded, next(calibrations))
        }
        if args.check:
            sides["held out"] = lambda: play(loaded, next(others))
        runs = interleave(sides, args.repeats, progress=not args.no_progress)
        cost = fit_steps(loaded, list(itertools.chain.from_iterable(runs["calibration"])))
        path = Path(args.out) if args.out else cost_path(cost.device)
        if not args.out:
            secure(path.parent)
        with writing(path, "--out" if args.out else "the calibration"):
            cost.save(path)
        print(
            f"{cost.num_steps} steps, fitted to {cost.median_error:.1%} (median); kept in {path}",
            file=sys.stderr,
        )
        result = frame(race, "calibrate", median_error=cost.median_error, steps=cost.num_steps)
        kept = True
        if args.check:
            seeds = range(args.seed, args.seed + args.repeats)
            checked = check(loaded, cost, seeds, runs["held out"])
            kept = all(row.kept for row in checked)
            _report(checked)
            result["check"] = [vars(row) | {"kept": row.kept} for row in checked]
        emit(result, args.json)
    return 0 if kept else 1


def record(loaded: LoadedModel, seed: int) -> list[StepTrace]:
    """The steps of the calibration's traffic, played on a new engine."""
    engine = build_engine(loaded)
    for played in _calibration(loaded.config.model.vocab_size, seed):
        drive(engine, played)
    # The first steps include allocation.
    return list(engine.trace.steps)[3:]


def play(loaded: LoadedModel, seed: int) -> Run:
    """Play the held-out traffic on a new engine that was warmed up."""
    engine = build_engine(loaded)
    drive(engine, at_once([[5] * 100] * 2, [fixed_length(4)] * 2))
    return run_of(engine, drive(engine, held_out(loaded.config.model.vocab_size, seed)))


def fit_steps(loaded: LoadedModel, steps: Sequence[StepTrace]) -> FittedCost:
    """The fitted cost of a step on this machine."""
    machine = describe_machine()
    device = Machine(
        name=machine.processor(loaded.config.device),
        model=loaded.name,
        threads=torch.get_num_threads(),
        torch_version=machine.torch_version,
        date=datetime.now(UTC).date().isoformat(),
    )
    return fit(steps, device, str(loaded.config.dtype).removeprefix("torch."))


def _calibration(vocab_size: int, seed: int) -> list[Traffic]:
    """Traffic from one request alone to a full batch, with short contexts and long ones."""
    vocab = min(vocab_size, 4000)
    alone = at_once([[5] * 600, [7] * 30], [fixed_length(60), fixed_length(60)])
    mixed = conversations.independent(
        length_draws.uniform(8, 500), length_draws.uniform(8, 120), vocab
    )
    short = conversations.independent(
        length_draws.uniform(2, 40), length_draws.uniform(4, 40), vocab
    )
    return [
        alone,
        traffic(mixed, 32, 1e6, seed=seed, name="all places"),
        traffic(short, 24, 12.0, seed=seed, name="a few at a time"),
        traffic(mixed, 12, 2.5, seed=seed, name="a few with long contexts"),
    ]


def held_out(vocab_size: int, seed: int) -> Traffic:
    """Bursts of log-normal lengths: other arrivals and other lengths than in the calibration."""
    jobs = conversations.independent(
        length_draws.lognormal(100, 0.8, at_most=700),
        length_draws.lognormal(40, 0.7, at_most=250),
        min(vocab_size, 4000),
    )
    return traffic(jobs, 40, 5.0, gamma_arrivals(0.5), seed=seed, name="held out")


@dataclass(frozen=True)
class Checked:
    """One quantity, measured here and on the virtual clock."""

    name: str
    here: float
    virtual: float
    promise: float

    @property
    def error(self) -> float:
        """(virtual - here) / here."""
        return (self.virtual - self.here) / self.here

    @property
    def kept(self) -> bool:
        """True if the error is within the promised one."""
        return abs(self.error) <= self.promise


def check(
    loaded: LoadedModel, cost: FittedCost, seeds: Iterable[int], here: Sequence[Run]
) -> list[Checked]:
    """The held-out traffic of all rounds together, here and on the virtual clock."""
    virtual = []
    for seed in seeds:
        engine = build_virtual_engine(loaded.config.model, loaded.config.config, cost)
        played = held_out(loaded.config.model.vocab_size, seed)
        virtual.append(run_of(engine, drive(engine, played, fast=True)))
    ours, theirs = serve_result(pooled(here)), serve_result(pooled(virtual))
    return [Checked(name, ours[name], theirs[name], promise) for name, promise in PROMISES.items()]


def _report(checked: Sequence[Checked]) -> None:
    rows = [
        [
            row.name,
            f"{row.here:.4g}",
            f"{row.virtual:.4g}",
            f"{row.error:+.1%}",
            f"{row.promise:.0%}",
            "yes" if row.kept else "NO",
        ]
        for row in checked
    ]
    print_table(["", "this machine", "virtual clock", "error", "promised", "kept"], rows)


def cost_path(device: Machine) -> Path:
    """The file for a machine, model, torch version and number of threads."""
    key = "|".join([device.name, device.model, str(device.threads), device.torch_version])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_directory() / f"steps-{digest}.json"
