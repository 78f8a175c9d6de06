"""Throughput: a workload that arrives at once, ours and peers in interleaved rounds."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from statistics import median
from typing import Any

from minserve.bench.common import (
    Race,
    add_common_arguments,
    config_from,
    emit,
    frame,
    open_race,
    print_table,
    sides_of,
)
from minserve.bench.counts.floor import floor_of
from minserve.bench.counts.outside import measure_outside
from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.bench.metrics import Run, serve_result, throughput_result
from minserve.bench.peers.engine_side import EngineSide
from minserve.bench.peers.equal import compare_tokens
from minserve.bench.peers.sides import Side
from minserve.bench.peers.transformers_peer import TransformersSide, best_batch_size
from minserve.bench.workloads.workload import Workload, race_workload
from minserve.config import ConfigError, EngineConfig
from minserve.hardware import machine_ceilings
from minserve.models import load_spec

_CHECKED = 16
"""Requests whose tokens are compared before a race in a format other than float32."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench offline`."""
    add_common_arguments(parser)
    parser.add_argument("--num-prompts", type=int, default=64, help="requests (default: 64)")
    parser.add_argument("--skip-check", action="store_true", help="do not compare tokens first")
    parser.add_argument("--skip-floor", action="store_true", help="no floor, no time outside")


def run(args: argparse.Namespace) -> int:
    """Measure and report. Returns 1 if a peer's tokens differ by more than ties."""
    if "llama" in args.vs:
        raise ConfigError(
            "--vs llama serves one request at a time and has no place in a race of throughput: use "
            "`minserve bench latency`"
        )
    with open_race(args) as race:
        spec = load_spec(race.model)
        workload = race_workload(spec.vocab_size, args.num_prompts, args.seed)
        config = config_from(
            args,
            scheduling__max_model_len=workload.longest,
            scheduling__max_num_seqs=min(64, args.num_prompts),
        )
        engine = race.engine(config)
        sides = sides_of(race, engine)
        result = frame(race, "offline", workload=workload.to_dict())
        result |= {"num_prompts": args.num_prompts, "request_rate": "inf", "burstiness": 1.0}
        result |= {"max_concurrency": None}
        checks = [] if args.skip_check else _check(race, config, sides, workload)
        for side in sides.values():
            if isinstance(side, TransformersSide):
                _say("trying transformers' batch sizes ...")
                result["settings_tried"] = best_batch_size(side, workload)
        runs = interleave(
            {name: partial(side.throughput, workload) for name, side in sides.items()},
            args.repeats,
            warmup={
                name: partial(side.throughput, workload.first(4)) for name, side in sides.items()
            },
            progress=not args.no_progress,
        )
        result |= _figures(engine, sides, runs)
        result["equal_tokens"] = [check.to_dict() for check in checks]
        if not args.skip_floor:
            limits = machine_ceilings(args.device, dtypes=(args.dtype,))
            # The trace is that of the engine's last round, so that round is compared
            # with its own floor.
            floor = floor_of(engine.trace, limits, args.dtype)
            result["floor"] = floor.to_dict()
            outside = measure_outside(race.model, config)
            result["outside_operators"] = outside.to_dict()
            _say(f"{floor}\n{outside}")
        for check in checks:
            _say(f"equal tokens: {check}")
        emit(result, args.json)
        # OpenVINO reads weights rounded to float16, and its defaults compute in another number
        # format: its differences are reported, not judged.
        return int(any(not c.equal for c in checks if c.against == "transformers"))


def _check(
    race: Race, config: EngineConfig, sides: dict[str, Side], workload: Workload
) -> list[Any]:
    """Compare tokens in float32 with every peer; transformers is the oracle of ties."""
    if len(sides) == 1:
        return []
    _say("comparing tokens in float32 ...")
    part = workload.first(_CHECKED)
    same = race.args.dtype == "float32"
    engine = sides["minserve"] if same else race.engine(config.with_values({"dtype": "float32"}))
    ours = engine.throughput(part).token_ids
    oracle = sides.get("transformers") if same else None
    if not isinstance(oracle, TransformersSide):
        oracle = race.transformers("float32")
    found = []
    for name, side in sides.items():
        if side is engine or name == "minserve":
            continue
        peer = oracle if isinstance(side, TransformersSide) else side
        theirs = peer.throughput(part).token_ids
        found.append(
            compare_tokens(
                part, ours, theirs, against=name, dtype="float32", gap=oracle.top_two_gap
            )
        )
    return found


def _figures(
    engine: EngineSide, sides: dict[str, Side], runs: dict[str, list[Run]]
) -> dict[str, Any]:
    rates = {name: [run.output_throughput for run in each] for name, each in runs.items()}
    ours = runs[engine.name]
    # All figures are those of the median round, so that they belong together.
    middle = sorted(ours, key=lambda run: run.output_throughput)[len(ours) // 2]
    result: dict[str, Any] = serve_result(middle) | throughput_result(middle)
    result["sides"], result["ratios"], rows = [], {}, []
    for name, side in sides.items():
        spread = Spread.of(rates[name])
        result["sides"].append(
            {
                "name": name,
                "settings": dict(side.settings),
                "durations": [run.duration_s for run in runs[name]],
                "output_throughputs": list(spread.values),
                "output_throughput": spread.median,
            }
        )
        ratio = ""
        if name != engine.name:
            pairs = pairwise_ratio(rates[engine.name], rates[name])
            result["ratios"][name] = vars(pairs)
            ratio = str(pairs)
        seconds = median(run.duration_s for run in runs[name])
        rows.append([name, f"{seconds:.2f}", str(spread), ratio])
    print_table(["side", "seconds", "output tokens/s (spread)", "minserve is x times"], rows)
    return result


def _say(text: str) -> None:
    print(text, file=sys.stderr)
