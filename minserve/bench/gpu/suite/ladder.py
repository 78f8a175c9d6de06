"""The ladder: what each optimization adds, from torch operators to overlap, for a batch and for
one request alone.

Each rung runs once in a round, and is compared with the rung before it in the same round. The batch
is the nano-vllm workload with fewer and shorter requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from minserve.bench.gpu.cases.nano_vllm import nano_vllm
from minserve.bench.gpu.engines import Bench, random_model, shape_of
from minserve.bench.gpu.setting import Setting, is_tuned
from minserve.bench.gpu.suite.throughput import SHAPE, serving_s, traffic_of
from minserve.bench.interleave import Spread, pairwise_ratio
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length
from minserve.config import EngineConfig
from minserve.kernels.base import Ops
from minserve.loading import LoadedModel

ROUNDS = 3


@dataclass(frozen=True)
class Rung:
    """One optimization, added to the rung below."""

    name: str
    switches: Mapping[str, Any] = field(default_factory=dict)
    whole_contexts: bool = False
    """Decode attention does not split contexts."""


RUNGS = (
    Rung("torch operators", {"kernels.backend": "torch"}),
    Rung("+ fused kernels", {"kernels.backend": "triton"}, whole_contexts=True),
    Rung("+ split contexts"),
    Rung("+ tuned tiles", {"kernels.autotune": True}),
    Rung("+ CUDA graphs", {"kernels.cuda_graphs": True}),
    Rung("+ overlap", {"scheduling.async_scheduling": True}),
)


def configs(setting: Setting) -> dict[str, tuple[EngineConfig, bool]]:
    """Rung -> its configuration, and whether contexts are not split. Tuned tiles are a rung only if
    they were found before, because the search takes minutes."""
    values: dict[str, Any] = {
        "device": str(setting.device),
        "scheduling.max_num_seqs": setting.pick(64, 4),
        "scheduling.max_num_batched_tokens": setting.pick(4096, 32),
        "scheduling.max_model_len": setting.pick(576, 32),
        "memory.kv_bytes": setting.pick(8 << 30, 1 << 24),
    }
    found, spec = {}, shape_of(setting, SHAPE).spec()
    for rung in RUNGS:
        if "kernels.autotune" in rung.switches and not is_tuned(setting, spec):
            setting.record.skip(f"{rung.name}: `make gpu PARTS=tune` has not run on this card")
            continue
        values |= rung.switches
        if setting.dry_run:
            # In a dry run the part `kernels` interprets the kernels; here only the order of the
            # rungs is tested.
            values |= {"kernels.backend": "torch"}
        found[rung.name] = (EngineConfig().with_values(values), rung.whole_contexts)
    return found


def run(setting: Setting) -> None:
    """A row per workload and rung."""
    vocab = shape_of(setting, SHAPE).vocab_size
    batch = setting.pick(nano_vllm(64, 256, 25), nano_vllm(4, 10, 3, vocab_size=vocab))
    alone = at_once([[2, 3, 4, 5, 6]], [fixed_length(setting.pick(100, 6))])
    rungs = configs(setting)
    for name, traffic in (("64 requests", traffic_of(batch)), ("one request", alone)):
        if setting.time_for(f"the ladder, {name}", 15.0):
            _measure(setting, rungs, name, traffic)


def _measure(
    setting: Setting,
    rungs: Mapping[str, tuple[EngineConfig, bool]],
    workload: str,
    traffic: Traffic,
) -> None:
    shape = shape_of(setting, SHAPE)
    loaded: LoadedModel | None = None
    with ExitStack() as stack:
        benches: dict[str, Bench] = {}
        for name, (config, whole) in rungs.items():
            mine = random_model(setting, shape, config)
            # All rungs share one copy of the weights.
            loaded = loaded or mine
            mine = LoadedModel(mine.name, mine.path, mine.config, None, {}, loaded.weights)
            ops = _whole_contexts(setting) if whole else None
            benches[name] = stack.enter_context(Bench(setting, mine, ops))
        idle: dict[str, list[float]] = {name: [] for name in benches}

        def play(name: str) -> float:
            trace, _, times = benches[name].play(traffic)
            idle[name].append(times.idle_s if times else 0.0)
            return trace.totals.sampled_tokens / serving_s(trace)

        calls = {name: partial(play, name) for name in benches}
        for call in calls.values():
            call()  # Compiles, captures and tunes.
        idle = {name: [] for name in benches}
        rates = setting.take_turns(calls, setting.pick(ROUNDS, 1), f"the ladder, {workload}")
        before: str | None = None
        for name, bench in benches.items():
            gain = None if before is None else vars(pairwise_ratio(rates[name], rates[before]))
            setting.record.add(
                {
                    "workload": workload,
                    "name": name,
                    "tokens_per_s": vars(Spread.of(rates[name])),
                    "over_the_rung_before": gain,
                    "device_idle_per_step_s": median(idle[name]),
                    "settings": bench.settings,
                }
            )
            before = name


def _whole_contexts(setting: Setting) -> Ops | None:
    if setting.dry_run:
        return None
    from minserve.kernels.triton import TritonOps

    return TritonOps(split=False)
