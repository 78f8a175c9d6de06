"""Prefill of one prompt in one step, 8B shape: FLOP/s compared with the matrix rate (MFU).

Counted FLOPs: every product, and attention's scores and sums over the keys that each token sees.
"""

from __future__ import annotations

from typing import Any

from minserve.bench.gpu.engines import Bench, random_model, shape_of
from minserve.bench.gpu.setting import Setting, fastest, matrix_share
from minserve.bench.interleave import Spread
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.config import EngineConfig
from minserve.hardware import Ceilings

SHAPE = "llama-3.1-8b"
LENGTHS = (2048, 4096, 8192, 16_384, 32_768)
TOY_LENGTHS = (16, 48)
ROUNDS = 5


def run(setting: Setting) -> None:
    """A row per length."""
    ceilings = setting.ceilings()
    lengths = setting.pick(LENGTHS, TOY_LENGTHS)
    shape = shape_of(setting, SHAPE)
    longest = lengths[-1] + 16
    base = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": 1,
            "scheduling.max_num_batched_tokens": longest,
            "scheduling.max_model_len": longest,
            "memory.kv_bytes": setting.pick(6 << 30, 1 << 24),
        }
    )
    loaded = random_model(setting, shape, fastest(setting, base, shape.spec()))
    with Bench(setting, loaded) as bench:
        for length in lengths:
            # Four times the shortest prompt's tokens, and attention on top.
            if setting.time_for(f"prefill of {length} tokens", length / 8192):
                setting.record.add(_measure(setting, bench, ceilings, length))


def _measure(setting: Setting, bench: Bench, ceilings: Ceilings, length: int) -> dict[str, Any]:
    traffic = at_once([[2 + at % 500 for at in range(length)]], [fixed_length(1)])
    bench.play(traffic)  # Compiles and tunes.
    seconds, work = [], None

    def once() -> float:
        nonlocal work
        trace, _, _ = bench.play(traffic)
        # With overlap, a second step may have been in flight when the first one ended the request.
        step = max(trace.steps, key=lambda each: each.num_prefill_tokens)
        work = step.work
        return step.duration_s

    seconds = setting.repeat(once, ROUNDS, f"prefill of {length} tokens")
    assert work is not None, "at least one round ran"
    spread = Spread.of(seconds)
    return {
        "name": f"{SHAPE}, {length} tokens",
        "tokens": length,
        "step_s": vars(spread),
        "tokens_per_s": length / spread.median,
        "flops": work.flops,
        "attention_flops": work.attention_flops,
        "matrix": matrix_share(work.flops / spread.median, ceilings, setting.dtype),
        "settings": bench.settings,
    }
