"""The ladder from reserved KV memory to pages: one trace, one byte budget, the same tokens.

Rungs take turns on the real engine; every round is a new engine. Throughput is measured; steps,
batches and shares of memory are counted. The reservations are those of Kwon et al. (arXiv
2309.06180, section 6.1).

There are two static rungs, and gains are reported over both. The first computes rectangles: prompts
padded to the longest of the batch, and a row for every request until the last one has ended. Before
Orca, servers worked this way (Yu et al., OSDI 2022, section 3.1, on FasterTransformer; Kwon et al.,
section 2.3, on padded inputs and outputs), and this version is faster than theirs: idle rows attend
only to themselves, and no request reserves memory for the longest possible request. The second
omits every row without a token, which no engine did then: the gain over it comes from scheduling
and memory, not from packing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from minserve.bench.common import Race, frame, print_table
from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.heavy_tail import COMMITTED
from minserve.bench.workloads.traces import read_mooncake, to_traffic
from minserve.bench.workloads.traffic import Traffic
from minserve.build import build_engine
from minserve.config import DTYPES, EngineConfig
from minserve.loading import LoadedModel, find_model, load_model
from minserve.trace import MemoryShares, RunTrace
from minserve.trace.summary import Distribution, distribution

POOL_TOKENS = 1280
"""KV memory of the committed trace's ladder, in tokens."""

LADDER = EngineConfig(dtype="float32").with_values(
    {
        "memory.block_size": 8,
        "memory.watermark": 0.05,
        "scheduling.max_num_seqs": 64,
        "scheduling.max_num_batched_tokens": 512,
    }
)
"""The settings that all rungs share. Contiguous memory is counted in pages too, which
must be neighbours."""

RECTANGLES = "static, rectangles, power of two"
PACKED = "static, packed, power of two"
"""The rungs over which gains are reported."""

RUNGS: dict[str, Mapping[str, Any]] = {
    RECTANGLES: {
        "scheduling.policy": "static",
        "kernels.padding": "batch",
        "memory.layout": "contiguous",
        "memory.reservation": "power_of_two",
    },
    PACKED: {
        "scheduling.policy": "static",
        "memory.layout": "contiguous",
        "memory.reservation": "power_of_two",
    },
    "continuous, longest": {"memory.layout": "contiguous", "memory.reservation": "max_model_len"},
    "continuous, power of two": {
        "memory.layout": "contiguous",
        "memory.reservation": "power_of_two",
    },
    "continuous, oracle": {"memory.layout": "contiguous", "memory.reservation": "oracle"},
    "continuous, paged": {"memory.layout": "paged"},
}
"""Name -> the fields that make the rung."""


@dataclass(frozen=True)
class RungRun:
    """One run of one rung."""

    trace: RunTrace
    token_ids: tuple[tuple[int, ...], ...]
    """By request."""

    @property
    def output_tokens_per_s(self) -> float:
        """Measured output tokens per second."""
        return self.trace.summary().output_tokens_per_s

    @property
    def waiting_s(self) -> Distribution:
        """Seconds from arrival to the first step that computed anything for a request."""
        queued = [request.metrics.queue_s for request in self.trace.requests]
        found = distribution([seconds for seconds in queued if seconds is not None])
        assert found is not None, "a rung's run has requests"
        return found

    @property
    def counts(self) -> dict[str, Any]:
        """Figures that are the same on every machine."""
        totals, shares = self.trace.totals, MemoryShares.of(self.trace.steps)
        return {
            "steps": totals.steps,
            "mean_batch": totals.scheduled / totals.steps,
            "padded_rows": totals.padded_rows,
            "peak_running": totals.peak_running,
            "preemptions": totals.preemptions,
            "recomputed_tokens": totals.recomputed_tokens,
            "useful_share": shares.useful,
            "kv_byte_steps": {name: getattr(shares, name) for name in MemoryShares.__slots__},
        }


def rung_configs(
    kv_bytes: int, longest: int, base: EngineConfig = LADDER
) -> dict[str, EngineConfig]:
    """The configuration of every rung: `kv_bytes` of KV memory, requests of at most
    `longest` tokens."""
    shared = {"memory.kv_bytes": kv_bytes, "scheduling.max_model_len": longest}
    return {name: base.with_values(shared | dict(fields)) for name, fields in RUNGS.items()}


def longest_of(traffic: Traffic) -> int:
    """Tokens of the longest request, prompt and output together."""
    return max(len(one.prompt_token_ids) + (one.params.max_tokens or 0) for one in traffic.requests)


def run_rung(loaded: LoadedModel, traffic: Traffic) -> RungRun:
    """Play the traffic to its end on a new engine."""
    engine = build_engine(loaded)
    done = drive(engine, traffic)
    return RungRun(engine.trace, tuple(tuple(one.output_token_ids) for one in done.requests))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench memory`."""
    add_ladder_arguments(parser)
    parser.add_argument(
        "--trace", default=str(COMMITTED), metavar="FILE", help="JSON lines in Mooncake's form"
    )


def add_ladder_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every command that runs the ladder."""
    parser.add_argument("--model", default="zoo/base", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--kv-tokens",
        type=int,
        default=POOL_TOKENS,
        help="KV memory of every rung, in tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=tuple(DTYPES),
        help="number format of every rung (default: %(default)s)",
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    # Defaults of fields that the report's frame reads.
    parser.set_defaults(device="cpu", seed=0)


def run(args: argparse.Namespace) -> int:
    """Measure and report: a table on stderr, a line of JSON on stdout. Returns 1 if a
    rung's tokens differ."""
    config = LADDER.with_values({"dtype": args.dtype, "kernels.num_threads": args.threads})
    loaded = load_model(args.model, config, progress=not args.no_progress)
    entries = read_mooncake(args.trace)
    traffic = to_traffic(entries, vocab_size=loaded.config.model.vocab_size)
    kv_bytes = args.kv_tokens * loaded.config.model.kv_bytes_per_token(loaded.config.itemsize)
    configs = rung_configs(kv_bytes, longest_of(traffic), config)
    models = {name: load_model(args.model, each, progress=False) for name, each in configs.items()}
    first = Traffic("warm-up", traffic.requests[:8], None, 0)
    runs = interleave(
        {name: partial(run_rung, model, traffic) for name, model in models.items()},
        args.repeats,
        warmup={name: partial(run_rung, model, first) for name, model in models.items()},
        progress=not args.no_progress,
    )
    race = Race(args, find_model(args.model), args.model, False)
    result = frame(
        race,
        "memory",
        workload={
            "num_requests": len(entries),
            "total_input_tokens": sum(entry.input_tokens for entry in entries),
            "total_output_tokens": sum(entry.output_tokens for entry in entries),
            "longest": longest_of(traffic),
        },
        kv_bytes=kv_bytes,
        repeats=args.repeats,
    )
    result |= _figures(configs, runs)
    print(json.dumps(result))
    return int(not result["same_tokens"])


def _figures(
    configs: Mapping[str, EngineConfig], runs: Mapping[str, Sequence[RungRun]]
) -> dict[str, Any]:
    names = list(runs)
    rates = {name: [run.output_tokens_per_s for run in each] for name, each in runs.items()}
    tokens = {run.token_ids for each in runs.values() for run in each}
    rungs, rows = [], []
    for name, each in runs.items():
        rate = Spread.of(rates[name])
        over_first = pairwise_ratio(rates[name], rates[names[0]])
        over_packed = pairwise_ratio(rates[name], rates[PACKED])
        middle = sorted(each, key=lambda run: run.output_tokens_per_s)[len(each) // 2]
        waiting, counts = middle.waiting_s, middle.counts
        rungs.append(
            {
                "name": name,
                "settings": configs[name].to_dict() | {"memory.disk_path": None},
                "output_tokens_per_s": vars(rate),
                "times_first_rung": vars(over_first),
                "times_packed_static": vars(over_packed),
                "waiting_p50_s": waiting.p50,
                "waiting_p99_s": waiting.p99,
                **counts,
            }
        )
        rows.append(
            [
                name,
                str(rate),
                str(over_first),
                str(over_packed),
                f"{counts['steps']}",
                f"{counts['mean_batch']:.1f}",
                f"{waiting.p50:.2f}",
                f"{waiting.p99:.2f}",
                f"{counts['useful_share']:.0%}",
                f"{counts['preemptions']}",
            ]
        )
    head = ["rung", "output tokens/s", "x first", "x packed", "steps", "batch", "waits p50 s",
            "p99 s", "useful KV", "preempted"]  # fmt: skip
    print_table(head, rows)
    if len(tokens) > 1:
        print("the rungs' tokens differ", file=sys.stderr)
    return {"rungs": rungs, "same_tokens": len(tokens) == 1}
