"""One call of every operator at a small shape, for code that counts or times operators.

Rows of these shapes fill the 32-byte sectors that memory moves, so that a count shows the waste of
the operator, not of the shape. Contexts are so long that a GPU with eight multiprocessors would
split each into two parts or more, as in a real launch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minserve.kernels.base import Ops, Scores
from minserve.kernels.counts import least
from minserve.kernels.counts.least import Bytes

ROWS, HEADS, KV_HEADS, HEAD_DIM, PAGE = 4, 8, 2, 64, 16
CONTEXTS = (1024, 768)
PROCESSORS = 8
"""Multiprocessors assumed when attention is split: one part for each 256 tokens of these
contexts."""


@dataclass(frozen=True)
class Case:
    """One operator, one shape."""

    name: str
    run: Callable[[Ops], object]
    least: Bytes


def cases(
    dtype: torch.dtype = torch.float16, device: torch.device | str = "cpu", seed: int = 0
) -> list[Case]:
    """Every operator except the matrix product, with random inputs of these shapes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    def whole(values: list[int], kind: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=kind).to(device)

    width, x, weight = 1024, normal(ROWS, 1024), normal(1024)
    residual, gate_up = normal(ROWS, width), normal(ROWS, 2 * width)
    gated = least.silu_and_mul(gate_up)
    heads = normal(ROWS, HEADS + 2 * KV_HEADS, HEAD_DIM)
    turned = heads[:, : HEADS + KV_HEADS]
    k, v = heads[:, HEADS : HEADS + KV_HEADS], heads[:, HEADS + KV_HEADS :]
    positions, slots = whole([3, 70, 9, 44], torch.int64), whole([5, 40, 41, 99], torch.int64)
    some = whole([3, 0, 2, 1], torch.int64)
    angles = torch.rand(128, HEAD_DIM, generator=generator).to(device)
    tables, num_blocks = _block_tables(generator)
    cached = [normal(num_blocks, KV_HEADS, PAGE, HEAD_DIM) for _ in range(2)]
    decode, chunk = (1,) * len(CONTEXTS), (48, 16)
    return [
        Case("rms norm", lambda ops: ops.rms_norm(x, weight, 1e-5), least.rms_norm(x, weight)),
        Case(
            "rms norm of some rows",
            lambda ops: ops.rms_norm_rows(x, some, weight, 1e-5),
            least.rms_norm_rows(x, some, weight),
        ),
        Case(
            "add, rms norm",
            lambda ops: ops.add_rms_norm(x, residual, weight, 1e-5),
            least.add_rms_norm(x, residual, weight),
        ),
        Case("silu and multiply", lambda ops: ops.silu_and_mul(gate_up), gated),
        Case("gelu and multiply", lambda ops: ops.gelu_and_mul(gate_up), gated),
        Case(
            "rotary",
            lambda ops: ops.rotary_(turned, positions, angles),
            least.rotary(turned, positions, angles),
        ),
        Case(
            "store keys and values",
            lambda ops: ops.store_kv(k, v, cached[0], cached[1], slots),
            least.store_kv(k, v, slots),
        ),
        Case(
            "rotary and store",
            lambda ops: ops.rotary_store_(heads, positions, angles, cached[0], cached[1], slots),
            least.rotary_store(heads, positions, angles, cached[0], slots),
        ),
        *(
            _attention(name, normal(sum(rows), HEADS, HEAD_DIM), cached, tables.to(device), rows)
            for name, rows in (("attention, decode", decode), ("attention, prefill", chunk))
        ),
    ]


def _block_tables(generator: torch.Generator) -> tuple[Tensor, int]:
    """Block tables of CONTEXTS over shuffled pages, int32 `[requests, pages]`; and the
    number of pages."""
    blocks = [-(-context // PAGE) for context in CONTEXTS]
    order = torch.randperm(sum(blocks), generator=generator).to(torch.int32)
    tables = torch.zeros(len(blocks), max(blocks), dtype=torch.int32)
    for request, count in enumerate(blocks):
        tables[request, :count] = order[sum(blocks[:request]) :][:count]
    return tables, sum(blocks)


def _attention(
    name: str, q: Tensor, cached: list[Tensor], tables: Tensor, rows: tuple[int, ...]
) -> Case:
    keys, values = cached
    starts = torch.tensor([0, *rows]).cumsum(0).to(torch.int32).to(tables.device)
    lens = torch.tensor(CONTEXTS, dtype=torch.int32).to(tables.device)

    def run(ops: Ops) -> object:
        planned = ops.plan_attention(tables, starts, lens, rows, CONTEXTS)
        return planned(q, keys, values, Scores(HEAD_DIM**-0.5))

    return Case(name, run, least.attention(q, keys, rows, CONTEXTS))
