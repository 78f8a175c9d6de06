"""Throughput: the nano-vllm workload, all at once, with enough KV memory and with too little, and
transformers in the same run.

Ours runs before and after the peers, so that a drift of the GPU appears in the spread. The roofline
is the sum over steps of the larger of counted FLOPs and counted bytes at the measured ceilings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

from minserve.bench.counts.floor import floor_of
from minserve.bench.gpu.cases.nano_vllm import TEMPERATURE, nano_vllm
from minserve.bench.gpu.cases.transformers_peer import WINDOW_S, PeerRun, TransformersPeer
from minserve.bench.gpu.engines import Bench, StepTimes, changed, random_model, shape_of
from minserve.bench.gpu.record import share
from minserve.bench.gpu.setting import Setting, fastest, free
from minserve.bench.interleave import Spread
from minserve.bench.workloads.shapes import Shape
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length
from minserve.bench.workloads.workload import Workload
from minserve.config import EngineConfig
from minserve.hardware import Ceilings
from minserve.trace import RunTrace

SHAPE = "qwen3-0.6b"
AMPLE, TIGHT = "ample", "tight"
KV_BYTES = {AMPLE: 32 * 10**9, TIGHT: 8 * 10**9}
TOY_KV_BYTES = {AMPLE: 1 << 24, TIGHT: 5 * 8192}
_Served = tuple[RunTrace, StepTimes | None]
_CONTINUOUS_S, _STATIC_S = 18.0, 12.0
"""Seconds for each setting of a peer."""


def workload_of(setting: Setting) -> Workload:
    """The whole workload, or a toy version of it."""
    return setting.pick(nano_vllm(), nano_vllm(6, 24, 10, vocab_size=512))


def config_of(setting: Setting, budget: str) -> EngineConfig:
    """The engine for one KV budget, configured like nano-vllm: 16,384 tokens per step, a place
    for every request."""
    workload = workload_of(setting)
    base = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": len(workload.items),
            "scheduling.max_num_batched_tokens": setting.pick(16_384, 64),
            "scheduling.max_model_len": setting.pick(2048, 64),
            "memory.kv_bytes": setting.pick(KV_BYTES, TOY_KV_BYTES)[budget],
        }
    )
    return fastest(setting, base, shape_of(setting, SHAPE).spec())


def traffic_of(workload: Workload) -> Traffic:
    """All requests at the start, sampled as in nano-vllm, with fixed lengths."""
    return at_once(
        [item.prompt_token_ids for item in workload.items],
        [fixed_length(item.max_tokens, TEMPERATURE, seed=0) for item in workload.items],
        workload.name,
    )


def run(setting: Setting) -> None:
    """A row per KV budget and per peer."""
    ceilings, workload = setting.ceilings(), workload_of(setting)
    ample = _serve(setting, AMPLE, rounds=2)
    setting.record.add(_row(setting, AMPLE, workload, ample, ceilings))
    tight = _serve(setting, TIGHT, rounds=1)
    setting.record.add(_row(setting, TIGHT, workload, tight, ceilings))
    if not tight[-1][0].totals.preemptions:
        setting.record.note(f"{TIGHT}: no request was preempted: the budget did not bind")
    ours = median(_rate(trace) for trace, _ in ample)
    for row in _peers(setting, shape_of(setting, SHAPE), workload):
        setting.record.add(row | {"minserve_is_times": ours / row["tokens_per_s"]})
    if setting.time_for("our run again, after the peers", 25.0):
        ample += _serve(setting, AMPLE, rounds=1)
        setting.record.replace(0, _row(setting, AMPLE, workload, ample, ceilings))


def _serve(setting: Setting, budget: str, rounds: int) -> list[_Served]:
    """Serve the whole workload on a new engine, `rounds` times."""
    traffic = traffic_of(workload_of(setting))
    loaded = random_model(setting, shape_of(setting, SHAPE), config_of(setting, budget))
    with Bench(setting, loaded) as bench:
        bench.play(_warm_up(traffic))

        def once() -> _Served:
            trace, _, times = bench.play(traffic)
            return trace, times

        return setting.repeat(once, rounds, budget)


def _warm_up(traffic: Traffic) -> Traffic:
    """The first requests, with few tokens each: compiles and tunes."""
    few = traffic.requests[:4]
    return at_once([one.prompt_token_ids for one in few], [fixed_length(4, TEMPERATURE)] * len(few))


def serving_s(trace: RunTrace) -> float:
    """Seconds of a run, without compiling and capturing, which an engine does only once."""
    return trace.totals.duration_s - trace.totals.compile_s


def _rate(trace: RunTrace) -> float:
    return trace.totals.sampled_tokens / serving_s(trace)


def _row(
    setting: Setting, budget: str, workload: Workload, runs: list[_Served], ceilings: Ceilings
) -> dict[str, Any]:
    """The row of one budget: all its runs; the last one is compared with its own floor."""
    trace, times = runs[-1]
    totals = trace.totals
    if totals.sampled_tokens != workload.num_output_tokens:
        raise RuntimeError(
            f"{totals.sampled_tokens} of {workload.num_output_tokens} tokens were generated"
        )
    floor = floor_of(trace, ceilings, setting.dtype)
    rates = Spread.of([_rate(each) for each, _ in runs])
    of = f"counted-bytes roofline, sum over steps at {floor.limits}"
    return {
        "name": f"minserve, {budget} KV",
        "budget": budget,
        "workload": workload.to_dict() | {"sampling": f"temperature {TEMPERATURE}"},
        "kv_bytes": trace.header.config["memory.kv_bytes"],
        "output_tokens_per_s": vars(rates),
        "serving_s": serving_s(trace),
        "compile_s": [each.totals.compile_s for each, _ in runs],
        "steps": totals.steps,
        "device_idle_per_step_s": times and times.idle_s,
        "preemptions": totals.preemptions,
        "recomputed_tokens": totals.recomputed_tokens,
        "floor_s": floor.floor_s,
        "memory_floor_s": floor.memory_s,
        # The least time of the counted work, divided by the time it took.
        "roofline": share(floor.floor_s, serving_s(trace), of, "s"),
        "settings": changed(trace.header.config),
    }


def _peers(setting: Setting, shape: Shape, workload: Workload) -> list[dict[str, Any]]:
    """transformers, each of its two modes with the best of the settings tried."""
    try:
        peer = TransformersPeer(shape, setting.dtype, setting.device, setting.clock)
    except Exception as error:
        setting.record.skip(f"transformers: {type(error).__name__}: {error}"[:500])
        return []
    most = len(workload.items)
    continuous, static = (setting.pick(seconds, 3.0) for seconds in (_CONTINUOUS_S, _STATIC_S))
    modes: dict[str, dict[str, Callable[[], PeerRun]]] = {
        "continuous batching": {
            f"up to {requests} requests": partial(peer.continuous, workload, continuous, requests)
            for requests in setting.pick((128, most), (most,))
        },
        "generate": {
            f"batches of {size}": partial(peer.static, workload, static, size)
            for size in setting.pick((64, most), (3,))
        },
    }
    rows = []
    for mode, choices in modes.items():
        try:
            rows.append(_best(setting, mode, choices) | {"transformers": peer.version})
        except Exception as error:
            setting.record.skip(f"transformers, {mode}: {type(error).__name__}: {error}"[:500])
    for what in ("generate with a static cache and torch.compile", "compiled continuous batching"):
        setting.record.skip(f"transformers, {what}: compiling takes longer than the part has")
    peer.close()
    free(setting.device)
    return rows


def _best(
    setting: Setting, mode: str, choices: Mapping[str, Callable[[], PeerRun]]
) -> dict[str, Any]:
    """Run each setting once; the fastest is the peer's figure. Raises RuntimeError if none ran."""
    tried: dict[str, PeerRun] = {}
    said: list[dict[str, Any]] = []
    for name, serve in choices.items():
        if not setting.time_for(f"transformers, {mode}, {name}", 1.3 * _CONTINUOUS_S):
            continue
        try:
            tried[name] = serve()
            said.append({"choice": name, "tokens_per_s": tried[name].tokens_per_s})
        except Exception as error:
            said.append({"choice": name, "error": f"{type(error).__name__}: {error}"[:300]})
        free(setting.device)
    if not tried:
        raise RuntimeError(f"no run to compare with: {said}")
    best = max(tried, key=lambda name: tried[name].tokens_per_s)
    run = tried[best]
    measured = (
        "the whole workload"
        if run.finished
        else (f"cut off after {run.seconds:.0f} s; its fastest {WINDOW_S:.0f} s, which favours it")
    )
    return {
        "name": f"transformers, {mode}, {best}",
        "mode": mode,
        "measured": measured,
        "tokens_per_s": run.tokens_per_s,
        "output_tokens": run.output_tokens,
        "seconds": run.seconds,
        "finished": run.finished,
        "settings": run.settings,
        "settings_tried": said,
    }
