"""Latency: one request alone, ours and peers in interleaved rounds."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from minserve.bench.common import (
    add_common_arguments,
    config_from,
    emit,
    frame,
    open_race,
    print_table,
    sides_of,
)
from minserve.bench.counts.floor import floor_of
from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.bench.metrics import latency_result
from minserve.bench.peers.sides import Side, Stream
from minserve.bench.workloads.workload import single_stream
from minserve.hardware import machine_ceilings
from minserve.models import load_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench latency`."""
    add_common_arguments(parser)
    parser.set_defaults(repeats=7)
    parser.add_argument("--input-len", type=int, default=128, help="prompt tokens (default: 128)")
    parser.add_argument("--output-len", type=int, default=64, help="new tokens (default: 64)")
    parser.add_argument("--skip-floor", action="store_true", help="do not measure the machine")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    with open_race(args) as race:
        item = single_stream(
            load_spec(race.model).vocab_size, args.input_len, args.output_len, args.seed
        )
        length = args.input_len + args.output_len
        engine = race.engine(config_from(args, scheduling__max_model_len=length))
        sides = sides_of(race, engine)
        calls = {name: partial(side.stream, item) for name, side in sides.items()}
        streams = interleave(calls, args.repeats, warmup=calls, progress=not args.no_progress)
        result = frame(
            race,
            "latency",
            workload={
                "name": "single stream",
                "input_len": args.input_len,
                "output_len": args.output_len,
                "sampling": "greedy, end-of-sequence ignored",
            },
        )
        result |= _figures(sides, streams)
        if not args.skip_floor:
            limits = machine_ceilings(args.device, dtypes=(args.dtype,))
            floor = floor_of(engine.trace, limits, args.dtype)
            result["floor"] = floor.to_dict()
            print(floor, file=sys.stderr)
        emit(result, args.json)
    return 0


def _figures(sides: dict[str, Side], streams: dict[str, list[Stream]]) -> dict[str, Any]:
    ours = streams["minserve"]
    result: dict[str, Any] = latency_result([stream.e2e_s for stream in ours])
    result |= {
        "median_ttft_ms": Spread.of([stream.ttft_s for stream in ours]).median * 1e3,
        "median_tpot_ms": Spread.of([stream.tpot_s for stream in ours]).median * 1e3,
        "sides": [],
        "ratios": {},
    }
    rows = []
    for name, side in sides.items():
        ttft = Spread.of([stream.ttft_s * 1e3 for stream in streams[name]])
        tpot = Spread.of([stream.tpot_s * 1e3 for stream in streams[name]])
        same = sum(a.token_ids == b.token_ids for a, b in zip(ours, streams[name], strict=True))
        result["sides"].append(
            {
                "name": name,
                "settings": dict(side.settings),
                "ttft_ms": vars(ttft),
                "tpot_ms": vars(tpot),
                "same_tokens_as_minserve": same == len(ours),
            }
        )
        ratio = ""
        if name != "minserve":
            ratios = {
                "tpot": pairwise_ratio(
                    [stream.tpot_s for stream in ours], [each.tpot_s for each in streams[name]]
                ),
                "ttft": pairwise_ratio(
                    [stream.ttft_s for stream in ours], [each.ttft_s for each in streams[name]]
                ),
            }
            result["ratios"][name] = {key: vars(value) for key, value in ratios.items()}
            ratio = str(ratios["tpot"])
        rows.append([name, str(ttft), str(tpot), "yes" if same == len(ours) else "no", ratio])
    print_table(["side", "TTFT ms", "TPOT ms", "same tokens", "minserve's TPOT is x times"], rows)
    return result
