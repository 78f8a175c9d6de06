"""Where the ladder's gain disappears as answers become more alike.

Runs the ladder's first and last rungs on the real engine, over traces whose lengths spread less
and less. These are both static rungs, rectangles and packed, and the paged one
(`bench.runs.memory`). Each spread is a trace of `bench.workloads.heavy_tail` with the same total
of tokens, in the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from minserve.bench.common import Race, frame, print_table
from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.bench.runs.memory import (
    LADDER,
    PACKED,
    RECTANGLES,
    RUNGS,
    add_ladder_arguments,
    longest_of,
    run_rung,
    rung_configs,
)
from minserve.bench.workloads.heavy_tail import REQUESTS, heavy_tail
from minserve.bench.workloads.traces import to_traffic
from minserve.bench.workloads.traffic import Traffic
from minserve.config import EngineConfig
from minserve.loading import find_model, load_model

LAST = list(RUNGS)[-1]
WORTH = 1.2
"""Below this gain, paging is hardly worth it."""
SPREADS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Standard deviations of the logarithm of the answers' lengths."""


@dataclass(frozen=True)
class Point:
    """One spread: the gain of the last rung over both first ones, with its spread over rounds."""

    spread: float
    over_rectangles: Spread
    over_packed: Spread
    same_tokens: bool

    def to_dict(self) -> dict[str, object]:
        """For a report."""
        return {
            "spread": self.spread,
            "times_rectangles": vars(self.over_rectangles),
            "times_packed_static": vars(self.over_packed),
            "same_tokens": self.same_tokens,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench memory-sweep`."""
    add_ladder_arguments(parser)
    parser.add_argument(
        "--spreads",
        type=_spread,
        nargs="+",
        default=list(SPREADS),
        metavar="S",
        help="standard deviations of the logarithm of the answers' lengths, 0 or more (default: "
        + " ".join(f"{spread:g}" for spread in SPREADS)
        + ")",
    )
    parser.add_argument(
        "--num-prompts",
        type=_count,
        default=REQUESTS,
        help="requests at each spread (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and report: a table on stderr, a line of JSON on stdout. Returns 1 if the
    sides' tokens differ."""
    config = LADDER.with_values({"dtype": args.dtype, "kernels.num_threads": args.threads})
    resolved = load_model(args.model, config, progress=not args.no_progress).config
    kv_bytes = args.kv_tokens * resolved.model.kv_bytes_per_token(resolved.itemsize)
    points = []
    for spread in args.spreads:
        traffic = to_traffic(
            heavy_tail(spread, args.num_prompts), vocab_size=resolved.model.vocab_size
        )
        points.append(_measure(args, config, kv_bytes, spread, traffic))
    race = Race(args, find_model(args.model), args.model, False)
    result = frame(
        race,
        "memory-sweep",
        workload={"num_requests": args.num_prompts},
        kv_bytes=kv_bytes,
        repeats=args.repeats,
    )
    result |= _figures(points)
    print(json.dumps(result))
    return int(not result["same_tokens"])


def _measure(
    args: argparse.Namespace, config: EngineConfig, kv_bytes: int, spread: float, traffic: Traffic
) -> Point:
    configs = rung_configs(kv_bytes, longest_of(traffic), config)
    sides = {
        name: partial(run_rung, load_model(args.model, configs[name], progress=False), traffic)
        for name in (RECTANGLES, PACKED, LAST)
    }
    runs = interleave(
        sides, args.repeats, warmup={LAST: sides[LAST]}, progress=not args.no_progress
    )
    rates = {name: [run.output_tokens_per_s for run in each] for name, each in runs.items()}
    return Point(
        spread,
        pairwise_ratio(rates[LAST], rates[RECTANGLES]),
        pairwise_ratio(rates[LAST], rates[PACKED]),
        len({run.token_ids for each in runs.values() for run in each}) == 1,
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)


def _spread(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, 0 or more")
    return value


def pays_from(gains: Mapping[float, float]) -> tuple[float, float] | None:
    """The two spreads between which the gain rises above `WORTH` and stays there; None
    if it never does."""
    ordered = sorted(gains)
    below = [spread for spread in ordered if gains[spread] < WORTH]
    above = [spread for spread in ordered if not below or spread > below[-1]]
    return (below[-1], above[0]) if below and above else None


def _figures(points: Sequence[Point]) -> dict[str, Any]:
    rows = [
        [f"{point.spread:g}", str(point.over_rectangles), str(point.over_packed)]
        for point in points
    ]
    print_table(["spread of answers", "paged, x rectangles", "paged, x packed static"], rows)
    if not all(point.same_tokens for point in points):
        print("the sides' tokens differ", file=sys.stderr)
    over_rectangles = {point.spread: point.over_rectangles.median for point in points}
    over_packed = {point.spread: point.over_packed.median for point in points}
    return {
        "sweep": [point.to_dict() for point in points],
        "pays_from_over_rectangles": pays_from(over_rectangles),
        "pays_from_over_packed": pays_from(over_packed),
        "same_tokens": all(point.same_tokens for point in points),
    }
