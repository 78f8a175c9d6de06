"""Models whose layers keep their caches for different lengths, and engines that serve them.

Pages that no request holds and no index knows are filled with NaN after every step, so that a page
freed too early shows in the next token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.oracle import random_model, save
from torch import float64

from minserve.build import build_engine
from minserve.clock import VirtualClock
from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.loading import load_model
from minserve.memory import plan_blocks
from minserve.request import Request, SamplingParams

WINDOW, PAGE, LONGEST = 48, 8, 1024
VOCAB = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LONGEST,
    "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip


def configurations() -> dict[str, Any]:
    """Configurations of transformers' own classes, by the kind of their layers."""
    from transformers import MistralConfig, Qwen2Config

    windowed = SIZES | {"use_sliding_window": True, "sliding_window": WINDOW}
    kinds = ["full_attention", "sliding_attention"] * 2
    return {
        "alternating": Qwen2Config(**windowed, layer_types=kinds),
        "full then windows": Qwen2Config(**windowed, max_window_layers=1),
        "windows": MistralConfig(**SIZES, sliding_window=WINDOW),
    }


def windowed_model(kind: str, folder: Path) -> tuple[Any, Path]:
    """transformers' model of this kind with random weights in float64, and where it is saved."""
    model = random_model(configurations()[kind], seed=11, dtype=float64)
    return model, save(model, folder)


def engine_of(model_dir: Path, values: Mapping[str, Any] | None = None) -> Engine:
    """A float64 engine with small pages and chunks, on a clock that stands still."""
    settings = {
        "dtype": "float64",
        "device": "cpu",
        "kernels.backend": "torch",
        "memory.block_size": PAGE,
        "memory.check_integrity": True,
        "memory.watermark": 0.0,
        "scheduling.max_num_seqs": 4,
        "scheduling.max_num_batched_tokens": 64,
        "scheduling.max_model_len": LONGEST,
    }
    config = EngineConfig().with_values(settings | dict(values or {}))
    return build_engine(load_model(model_dir, config, progress=False), VirtualClock())


def tight(
    model_dir: Path, pages: int, values: Mapping[str, Any], swaps: bool = False
) -> dict[str, Any]:
    """`values`, and the bytes with which the primary group gets so many pages; with `swaps` host
    slots for all of them too."""
    config = engine_of(model_dir, values).config
    plans = plan_blocks(config, pages)
    num_bytes = sum(plan.num_blocks * plan.block_bytes for plan in plans)
    more = {"memory.kv_bytes": num_bytes}
    if swaps:
        more |= {"scheduling.preemption": "swap", "memory.host_bytes": num_bytes}
    return dict(values) | more


def poison(engine: Engine) -> None:
    """NaN in every page that is free."""
    for group in engine.memory.groups:
        free = group.pool.free_blocks()
        for keys, values in group.store.layers.values():  # type: ignore[attr-defined]
            keys[free] = math.nan
            values[free] = math.nan


def run(engine: Engine, on_step: Callable[[], None] | None = None) -> None:
    """Step until nothing is left, with free pages full of NaN."""
    while engine.has_work:
        poison(engine)
        engine.step()
        engine.audit()
        if on_step is not None:
            on_step()
    assert all(group.pool.num_owned == 0 for group in engine.memory.groups)


def prompt(number: int, length: int, shared: int = 0) -> list[int]:
    """Tokens of a prompt, the first `shared` of them the same for every number."""
    common = [(37 * place + 11) % VOCAB for place in range(shared)]
    own = [(53 * place + 29 * number + place * place) % VOCAB for place in range(length - shared)]
    return common + own


def ask(
    engine: Engine, prompts: Sequence[Sequence[int]], count: int, **params: Any
) -> list[Request]:
    """Queue prompts, greedy unless `params` say otherwise."""
    asked: dict[str, Any] = {"max_tokens": count, "temperature": 0.0, "ignore_eos": True} | params
    found: list[Request] = []
    for tokens in prompts:
        name = f"r{len(engine.trace.requests) + len(engine.live_requests())}"
        found += engine.add(name, tokens, SamplingParams(**asked))
    return found


def outputs(requests: Sequence[Request]) -> list[list[int]]:
    """What the requests wrote."""
    assert all(request.finish_reason in ("length", "stop") for request in requests)
    return [request.output_token_ids for request in requests]
