"""The workload of nano-vllm's own benchmark, with the same random draws, so that
figures compare."""

from __future__ import annotations

import random

from minserve.bench.workloads.workload import WorkItem, Workload

TEMPERATURE = 0.6
"""nano-vllm samples with this temperature, and ignores end-of-sequence."""


def nano_vllm(
    requests: int = 256, longest: int = 1024, shortest: int = 100, vocab_size: int = 10_001
) -> Workload:
    """Prompts and outputs of `shortest` to `longest` tokens, uniformly; token ids below 10,001.

    The order of the draws determines the workload: all prompts first, then all output lengths. The
    defaults give 142,827 prompt and 133,966 output tokens.
    """
    draw = random.Random(0)
    last = min(10_000, vocab_size - 1)
    prompts = [
        tuple(draw.randint(0, last) for _ in range(draw.randint(shortest, longest)))
        for _ in range(requests)
    ]
    items = tuple(WorkItem(prompt, draw.randint(shortest, longest)) for prompt in prompts)
    name = f"nano-vllm: {requests} requests, {shortest}-{longest} tokens in and out"
    return Workload(name, items, 0)
