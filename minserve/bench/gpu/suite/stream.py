"""One request alone, real shapes with random weights: tokens per second compared with the
bandwidth.

A decode step reads every weight once, so bytes divided by time, as a share of the bandwidth,
shows how near it is to the memory's limit (MBU). Llama-2-7B as gpt-fast measures it: five
tokens in, 200 out.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from minserve.bench.gpu.engines import Bench, StepTimes, random_model, shape_of
from minserve.bench.gpu.setting import Setting, bandwidth_shares, fastest
from minserve.bench.interleave import Spread
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.config import EngineConfig
from minserve.hardware import Ceilings
from minserve.trace import RunTrace

SHAPES = ("llama-2-7b", "qwen3-0.6b", "llama-3.1-8b")
PROMPT_TOKENS = 5
ROUNDS = 5


def run(setting: Setting) -> None:
    """A row per shape."""
    ceilings = setting.ceilings()
    for number, name in enumerate(SHAPES):
        if number and not setting.time_for(f"single stream, {name}", 12.0):
            continue
        setting.record.add(_measure(setting, ceilings, name))


def _measure(setting: Setting, ceilings: Ceilings, name: str) -> dict[str, Any]:
    tokens = setting.pick(200, 6)
    base = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": 1,
            "scheduling.max_model_len": setting.pick(512, 32),
            "memory.kv_bytes": setting.pick(1 << 30, 1 << 20),
        }
    )
    shape = shape_of(setting, name)
    loaded = random_model(setting, shape, fastest(setting, base, shape.spec()))
    traffic = at_once([list(range(2, 2 + PROMPT_TOKENS))], [fixed_length(tokens)])
    with Bench(setting, loaded) as bench:
        bench.play(traffic)  # Compiles, captures and tunes.
        found = setting.repeat(lambda: _once(bench, traffic), ROUNDS, name)
        settings = bench.settings
    tpot = Spread.of([tpot for tpot, _, _, _ in found])
    end_to_end = Spread.of([tokens / seconds for _, seconds, _, _ in found])
    moved = median(moved for _, _, moved, _ in found)
    times = found[-1][3]
    return {
        "name": name,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": tokens,
        "weights_bytes": loaded.weights.nbytes,
        "tpot_s": vars(tpot),
        "decode_tokens_per_s": 1 / tpot.median,
        "tokens_per_s_with_prefill": vars(end_to_end),
        "bytes_per_step": moved,
        "bandwidth": bandwidth_shares(moved / tpot.median, ceilings, setting.device),
        "step_period_s": times and times.period_s,
        "device_idle_per_step_s": times and times.idle_s,
        "settings": settings,
    }


def _once(bench: Bench, traffic: Any) -> tuple[float, float, float, StepTimes | None]:
    """(time per output token, end to end, bytes of a step, the device's times)."""
    trace, result, times = bench.play(traffic)
    metrics = result.requests[0].metrics()
    if metrics.tpot_s is None:
        raise RuntimeError("a single stream ended before its second token")
    return metrics.tpot_s, result.duration_s, step_bytes(trace), times


def step_bytes(trace: RunTrace) -> float:
    """Weights and cached keys and values of the middle decode step. Activations of one row stay in
    the caches, and are not counted."""
    decodes = [step.work for step in trace.steps if step.num_decode_tokens]
    return median(work.weight_bytes + work.kv_read_bytes + work.kv_write_bytes for work in decodes)
