"""One step of a model, launch by launch: as torch composes it, and with every operator fused.

Counted on torch's `meta` device, so that any shape takes only a moment and needs no weights. The
time of a launch is an argument, not measured: the times here are modelled.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from minserve.attention import PagedAttention
from minserve.batch import ForwardBatch, GroupTables
from minserve.bench.workloads.shapes import SHAPES
from minserve.config import DTYPES
from minserve.hardware import DEVICES, DeviceSpec
from minserve.kernels.base import Ops
from minserve.kernels.counts.launches import LabelledOps, Launch, LaunchCounter, Total, by_operator
from minserve.kernels.counts.least_ops import LeastOps
from minserve.kernels.reference.ops import TorchOps
from minserve.kernels.select import why_not_interpreted
from minserve.loading import find_model
from minserve.models import Decoder, load_spec
from minserve.models.weights import DecoderWeights, build_weights
from minserve.sampling import plan_sampling
from minserve.spec import ModelSpec
from minserve.trace import StepTrace

META = torch.device("meta")
PAGE = 16
WAYS = ("written out", "torch", "fused")
""""written out": torch with attention as two products and a softmax. "torch": as the engine's
"torch" backend runs it, with attention as one operator. "fused": every operator of `Ops` is one
launch that moves the least bytes it can."""


class _Shapes:
    """A `TensorReader` of weights without content."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor without memory."""
        return torch.empty(shape, dtype=self.dtype, device=META)

    def has(self, name: str) -> bool:
        """Every tensor exists."""
        return True


def step_launches(
    spec: ModelSpec, way: str, query_lens: Sequence[int], context_lens: Sequence[int], dtype: str
) -> list[Launch]:
    """The launches of one forward pass and its logits, without sampling.

    Request r computes `query_lens[r]` rows, the last of its `context_lens[r]` tokens; one row of
    logits each. `way` is one of `WAYS`; raises ValueError for another.
    """
    if way not in WAYS:
        raise ValueError(f"way={way!r}: choose {', '.join(WAYS)}")
    weights = build_weights(spec, _Shapes(DTYPES[dtype]), DTYPES[dtype], META)
    counter = LaunchCounter(META)
    ops: Ops
    if way == "fused":
        ops = LeastOps(counter)
    else:
        torch_ops: Ops = TorchOps(use_sdpa=False if way == "written out" else None)
        ops = LabelledOps(torch_ops, counter)
    run_step(spec, weights, ops, query_lens, context_lens, counter)
    return counter.launches


def run_launches(spec: ModelSpec, way: str, steps: Iterable[StepTrace], dtype: str) -> list[Launch]:
    """The launches of all steps of a run, each counted for that step's own rows and contexts.

    As in `step_launches`, without sampling, and with a row of logits for each request of a step.
    Raises ValueError for a step without detail by request (`trace.per_request`).
    """
    found: list[Launch] = []
    for step in steps:
        if len(step.requests) < step.num_scheduled:
            raise ValueError(
                f"step {step.index} does not say which rows it computed: run with trace.per_request"
            )
        query = tuple(each.num_tokens for each in step.requests)
        context = tuple(each.start + each.num_tokens for each in step.requests)
        found += _known_step(spec, way, query, context, dtype) if query else ()
    return found


@functools.lru_cache(maxsize=256)
def _known_step(
    spec: ModelSpec, way: str, query: tuple[int, ...], context: tuple[int, ...], dtype: str
) -> tuple[Launch, ...]:
    # Rounds of one workload have the same steps, and each takes a tenth of a second to count.
    return tuple(step_launches(spec, way, query, context, dtype))


def run_step(
    spec: ModelSpec,
    weights: DecoderWeights,
    ops: Ops,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    counter: LaunchCounter,
) -> None:
    """One forward pass over zeros on the weights' device, counted by `counter`."""
    batch, blocks = make_batch(spec, query_lens, context_lens, weights.device)
    decoder = Decoder(spec, weights, ops, max(context_lens))
    caches = make_caches(spec, blocks, weights.dtype, weights.device)
    attention = PagedAttention(spec, caches, ops)
    with counter, torch.inference_mode():
        plan = attention.plan(batch)
        hidden = decoder.forward(batch, plan)
        whole = batch.num_samples == batch.num_tokens
        decoder.head(hidden, None if whole else batch.sample_rows)


def make_batch(
    spec: ModelSpec, query_lens: Sequence[int], context_lens: Sequence[int], device: torch.device
) -> tuple[ForwardBatch, int]:
    """A batch of these lengths over consecutive pages, and the number of pages it needs."""
    counts = [-(-context // PAGE) for context in context_lens]
    first = [sum(counts[:request]) for request in range(len(counts))]
    tables = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    positions, slots = [], []
    for request, (rows, context) in enumerate(zip(query_lens, context_lens, strict=True)):
        tables[request, : counts[request]] = torch.arange(counts[request]) + first[request]
        mine = torch.arange(context - rows, context)
        positions.append(mine)
        slots.append(first[request] * PAGE + mine)
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    group = GroupTables(torch.cat(slots).to(device), tables.to(device))
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    batch = ForwardBatch(
        token_ids=torch.zeros(int(starts[-1]), dtype=torch.int64, device=device),
        positions=torch.cat(positions).to(device),
        query_starts=starts.to(torch.int32).to(device),
        kv_lens=torch.tensor(context_lens, dtype=torch.int32, device=device),
        groups=(group,) * len(spec.cache_groups()),
        sample_rows=(starts[1:] - 1).to(device),
        sampling=plan_sampling([]),
        prompt_rows=empty,
        prompt_targets=empty,
        num_prompt_logprobs=-1,
        query_lens=tuple(query_lens),
        context_lens=tuple(context_lens),
    )
    return batch, sum(counts)


def make_caches(
    spec: ModelSpec, blocks: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values of every layer, zeros `[blocks, num_kv_heads, PAGE, head_dim]`. Layers that
    attend to another's cache share it."""
    caches: list[tuple[Tensor, Tensor]] = []
    for index, layer in enumerate(spec.layers):
        owner = spec.cache_layer(index)
        if owner != index:
            caches.append(caches[owner])
            continue
        keys, values = (
            torch.zeros(blocks, each.num_heads, PAGE, each.head_dim, dtype=dtype, device=device)
            for each in layer.mixer.cache.tensors
        )
        caches.append((keys, values))
    return tuple(caches)


def modelled_s(
    launches: Sequence[Launch], device: DeviceSpec, dtype: str, launch_s: float = 0.0
) -> float:
    """Least seconds of a step on a device whose host takes `launch_s` to start each launch.

    Launches run one after the other, each limited by its bytes or its products, while the host
    starts the next ones; the result is the longer of the two. Raises ValueError if the data
    sheet has no figure.
    """
    if device.memory_bytes_per_s is None:
        raise ValueError(f"{device.name}: no sourced figure for the memory bandwidth")
    rate = device.flops_per_s(dtype)
    busy = sum(
        max(each.moved.total / device.memory_bytes_per_s, each.flops / rate) for each in launches
    )
    return max(busy, len(launches) * launch_s)


def kernel_counts() -> dict[str, dict[str, float]] | None:
    """Operator -> its counts, from `kernels.triton.analysis.traffic` in a process that interprets.

    None if Triton is not installed, or its interpreter does not run.
    """
    if importlib.util.find_spec("triton") is None or why_not_interpreted() is not None:
        return None
    done = subprocess.run(
        [sys.executable, "-m", "minserve.kernels.triton.analysis.traffic"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print the counts of one step as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m minserve.bench.counts.launches",
        description="Launches and bytes of one step, unfused against fused; times are modelled.",
    )
    parser.add_argument(
        "--model", default="zoo/base", help="a model, or a shape: " + ", ".join(SHAPES)
    )
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(DTYPES))
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1, help="rows each request computes")
    parser.add_argument("--context", type=int, default=256, help="tokens of each request")
    parser.add_argument("--gpu", default="H100 SXM", choices=sorted(DEVICES))
    parser.add_argument("--launch-us", type=float, default=5.0, help="microseconds to start one")
    options = parser.parse_args(argv)
    shape = SHAPES.get(options.model)
    spec = shape.spec() if shape else load_spec(find_model(options.model))
    lens = [options.rows] * options.requests, [options.context] * options.requests
    report = {}
    for way in WAYS:
        launches = step_launches(spec, way, *lens, options.dtype)
        report[way] = {
            "launches": len(launches),
            "bytes": Total.of(launches).moved.total,
            "modelled_s": modelled_s(
                launches, DEVICES[options.gpu], options.dtype, options.launch_us * 1e-6
            ),
            "by operator": {
                name or "other": asdict(total) for name, total in by_operator(launches).items()
            },
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
