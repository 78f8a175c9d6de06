"""Configurations and traffic small enough for a test that really runs the engine."""

from __future__ import annotations

import random

from minserve import EngineConfig, KernelsConfig, MemoryConfig, SchedulingConfig
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length, poisson

BASE = EngineConfig(
    dtype="float32",
    device="cpu",
    # What runs is not the panels' concern, and a first use of native code compiles it.
    kernels=KernelsConfig(backend="torch"),
    memory=MemoryConfig(kv_bytes=2 << 20),
    scheduling=SchedulingConfig(max_num_seqs=4, max_model_len=64),
)
STATIC = BASE.with_values({"scheduling.policy": "static"})


def tiny(num_requests: int = 4, lengths: tuple[int, ...] = (2, 6)) -> Traffic:
    """Requests of a few tokens, all there at the start."""
    draw = random.Random(0)
    prompts = [[draw.randint(2, 3999) for _ in range(6)] for _ in range(num_requests)]
    params = [fixed_length(lengths[n % len(lengths)]) for n in range(num_requests)]
    return at_once(prompts, params, name="tiny")


def arriving(rate_per_s: float, num_requests: int = 4) -> Traffic:
    """The same, one after the other."""
    requests = tiny(num_requests).requests
    prompts = [request.prompt_token_ids for request in requests]
    return poisson(prompts, [request.params for request in requests], rate_per_s)
