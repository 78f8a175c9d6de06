"""`minserve bench commits`: how much CPU time two checkouts take for the same work.

Each stays loaded in its own process, on one thread. A pair is one run of a case by each checkout,
one directly after the other; which one goes first alternates. CPU time is measured instead of
wall-clock time, so that other programs on the machine disturb it less; the ratio is taken within a
pair. First, both run each case once and the tokens of every request are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minserve
from minserve.bench.commits.child import Checkout, CheckoutError
from minserve.bench.commits.side import CASES
from minserve.bench.common import emit, print_table, versions
from minserve.bench.interleave import Spread, interleave
from minserve.config import ConfigError
from minserve.hardware import describe_machine

RESAMPLES = 10_000
MIN_PAIRS = 5
"""Fewer ratios give an interval that is much too narrow."""
HERE = Path(minserve.__file__).parent.parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench commits`."""
    parser.description = (
        "CPU time (not wall-clock time) that two checkouts take for the same work, on one thread. "
        "Each case is first run once by both, and the tokens of every request are compared; then "
        "the checkouts take turns, in pairs. Both sides use this Python and its packages. Other "
        "programs share caches and clock speed with the benchmark, so the machine must be quiet. "
        "Ends with code 1 if a case failed or tokens differ."
    )
    parser.add_argument("--old", type=Path, required=True, metavar="PATH", help="a checkout")
    parser.add_argument(
        "--new", type=Path, default=HERE, metavar="PATH", help="another (default: this one)"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=15,
        help=f"per case; under {MIN_PAIRS} no interval is given (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CASE",
        help=f"some of the cases, each in quotes: {', '.join(map(repr, CASES))}",
    )
    parser.add_argument(
        "--work", type=float, default=1.0, help="share of each case's work (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write the result there, not to stdout")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Measure and report. Returns 1 if a case failed or tokens differ, otherwise 0."""
    _check(args)
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, folder in (("old", args.old), ("new", args.new)):
            sides[name] = Checkout(folder)
            stack.callback(sides[name].close)
        cases = [_compare(case, sides, args) for case in CASES if case in (args.only or CASES)]
        result = {
            "benchmark": "commits",
            "pairs": args.pairs,
            "work": args.work,
            "seed": args.seed,
            "threads": 1,
            "checkouts": {
                name: {"path": str(side.folder), "commit": side.commit}
                for name, side in sides.items()
            },
            "versions": versions(),
            "machine": describe_machine().to_dict(),
            "cases": cases,
        }
    print_table(*_table(cases))
    emit(result, args.json)
    return int(any("error" in case or case["difference"] is not None for case in cases))


def _check(args: argparse.Namespace) -> None:
    """Raise ConfigError for arguments that cannot work, before anything is measured."""
    if args.pairs < 1:
        raise ConfigError(f"--pairs {args.pairs}: expected at least 1")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: expected at least 0")
    if not (math.isfinite(args.work) and args.work > 0):
        raise ConfigError(f"--work {args.work}: expected a finite number above 0")
    for name in args.only or ():
        if name not in CASES:
            raise ConfigError(f"--only {name!r}: there are {', '.join(map(repr, CASES))}")
    for folder in (args.old, args.new):
        if not (folder / "minserve" / "__init__.py").is_file():
            raise ConfigError(
                f"{folder} is no checkout of minserve: it has no minserve/__init__.py"
            )


def _compare(case: str, sides: dict[str, Checkout], args: argparse.Namespace) -> dict[str, Any]:
    """One case: tokens first, then pairs."""
    try:
        first = {name: side.run(case, args.work, tokens=True) for name, side in sides.items()}
        runs = interleave(
            {name: partial(side.run, case, args.work) for name, side in sides.items()},
            args.pairs,
            progress=not args.no_progress,
        )
    except CheckoutError as error:
        return {"case": case, "error": str(error)}
    cpu_ms = {
        name: [1e3 * one["cpu_s"] / one["units"] for one in of_side]
        for name, of_side in runs.items()
    }
    ratios = [new / old for new, old in zip(cpu_ms["new"], cpu_ms["old"], strict=True)]
    enough = len(ratios) >= MIN_PAIRS
    low, high = median_interval(ratios, args.seed) if enough else (None, None)
    return {
        "case": case,
        "unit": "token" if case.startswith("generate") else "step",
        "difference": first_difference(first["old"]["tokens"], first["new"]["tokens"]),
        "units": {name: one["units"] for name, one in first.items()},
        "cpu_ms": {name: vars(Spread.of(values)) for name, values in cpu_ms.items()},
        "ratio": {"median": float(np.median(ratios)), "low": low, "high": high, "values": ratios},
    }


def first_difference(old: list[list[int]], new: list[list[int]]) -> str | None:
    """Where the tokens of two runs first differ, in words; None if they are equal."""
    if len(old) != len(new):
        return f"{len(old)} and {len(new)} requests"
    for number, (before, after) in enumerate(zip(old, new, strict=True)):
        if before != after:
            pairs = enumerate(zip(before, after, strict=False))
            same = min(len(before), len(after))
            position = next((at for at, (a, b) in pairs if a != b), same)
            return f"request {number} from token {position} on"
    return None


def median_interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median (percentiles; Efron and Tibshirani, 1993)."""
    drawn = np.random.default_rng(seed).choice(values, (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return float(low), float(high)


def _table(cases: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = ["case", "CPU-ms per", "old", "new", "new/old", "95 % interval", "tokens"]
    rows = []
    for case in cases:
        if "error" in case:
            rows.append([case["case"], "", "", "", "", "", case["error"]])
            continue
        ratio, cpu_ms = case["ratio"], case["cpu_ms"]
        rows.append(
            [
                case["case"],
                case["unit"],
                f"{cpu_ms['old']['median']:.4g}",
                f"{cpu_ms['new']['median']:.4g}",
                f"{ratio['median']:.3f}",
                "too few pairs"
                if ratio["low"] is None
                else f"{ratio['low']:.3f} to {ratio['high']:.3f}",
                "equal" if case["difference"] is None else f"DIFFER: {case['difference']}",
            ]
        )
    return header, rows
