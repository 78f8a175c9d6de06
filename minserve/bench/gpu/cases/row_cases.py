"""Operators over rows, and sampling: ours compared with torch's operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minserve.batch import SamplingBatch, to_device
from minserve.bench.gpu.cases.kernel_cases import OURS, PAGE, Buffers, Case
from minserve.bench.gpu.timing import Call
from minserve.kernels.counts import least
from minserve.kernels.matrix import Activation
from minserve.kernels.reference.ops import TorchOps
from minserve.request import Request, SamplingParams
from minserve.sampling import Sampler, plan_sampling

TORCH = TorchOps()


class RowCases(Buffers):
    """Operators of a layer outside of attention, and sampling from logits."""

    def cases(self) -> list[Case]:
        """Cases for a prefill chunk and for a decode step."""
        found: list[Case] = []
        for rows in (self.sizes.rows, self.sizes.few):
            found += [self.add_norm(rows), self.rotary_store(rows)]
            found += [self.gate(rows, "silu"), self.gate(rows, "gelu_tanh")]
            found += [self.product(rows), self.norm(rows), self.rotary(rows), self.store(rows)]
        found += [self.sampling(name, params) for name, params in SAMPLING.items()]
        return [*found, self.some_rows()]

    def norm(self, rows: int) -> Case:
        """RMSNorm."""
        width = self.sizes.hidden

        def make() -> Mapping[str, Call]:
            x, weight = self.normal(rows, width), self.normal(width)
            return {
                OURS: partial(self.ops.rms_norm, x, weight, 1e-5),
                "torch rms_norm": partial(F.rms_norm, x, (width,), weight, 1e-5),
            }

        moved = least.rms_norm(self.meta(rows, width), self.meta(width)).total
        return Case("rms norm", f"{rows} x {width}", moved, 0, make)

    def some_rows(self) -> Case:
        """The norm of rows picked from a chunk."""
        width, rows, some = self.sizes.hidden, self.sizes.rows, max(1, self.sizes.rows // 4)

        def make() -> Mapping[str, Call]:
            x, weight = self.normal(rows, width), self.normal(width)
            chosen = torch.randperm(rows, device=self.device)[:some]
            return {
                OURS: partial(self.ops.rms_norm_rows, x, chosen, weight, 1e-5),
                "torch, gather then rms_norm": lambda: F.rms_norm(
                    x[chosen], (width,), weight, 1e-5
                ),
            }

        chosen = self.meta(some, dtype=torch.int64)
        moved = least.rms_norm_rows(self.meta(rows, width), chosen, self.meta(width)).total
        return Case("rms norm of some rows", f"{some} of {rows} x {width}", moved, 0, make)

    def add_norm(self, rows: int) -> Case:
        """Residual addition and RMSNorm."""
        width = self.sizes.hidden

        def make() -> Mapping[str, Call]:
            x, residual, weight = (self.normal(rows, width), self.normal(rows, width),
                                   self.normal(width))  # fmt: skip
            # Small: it is added at every repetition, and the sum must not overflow.
            x *= 1e-4
            return {
                OURS: partial(self.ops.add_rms_norm, x, residual, weight, 1e-5),
                "torch add_, rms_norm": lambda: F.rms_norm(
                    residual.add_(x), (width,), weight, 1e-5
                ),
            }

        meta = self.meta(rows, width)
        moved = least.add_rms_norm(meta, meta, self.meta(width)).total
        return Case("add, rms norm", f"{rows} x {width}", moved, 0, make)

    def _heads(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """A fused projection, its positions, and the rotary table."""
        sizes = self.sizes
        heads = self.normal(rows, sizes.heads + 2 * sizes.kv_heads, sizes.head_dim)
        angles = torch.rand(4096, sizes.head_dim // 2, device=self.device)
        table = torch.cat((angles.cos(), angles.sin()), -1).to(self.dtype)
        return heads, torch.randint(0, 4096, (rows,), device=self.device), table

    def _blocks(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values, and a free slot for each row, in random order."""
        sizes = self.sizes
        blocks = -(-rows // PAGE)
        keys, values = (self.normal(blocks, sizes.kv_heads, PAGE, sizes.head_dim)
                        for _ in range(2))  # fmt: skip
        return keys, values, torch.randperm(blocks * PAGE, device=self.device)[:rows]

    def rotary(self, rows: int) -> Case:
        """Rotary embedding alone."""
        turned = self.sizes.heads + self.sizes.kv_heads

        def make() -> Mapping[str, Call]:
            heads, positions, table = self._heads(rows)
            x = heads[:, :turned]
            return {
                OURS: partial(self.ops.rotary_, x, positions, table),
                "torch operators": partial(TORCH.rotary_, x, positions, table),
            }

        x = self.meta(rows, turned, self.sizes.head_dim)
        table = self.meta(4096, self.sizes.head_dim)
        moved = least.rotary(x, self.meta(rows, dtype=torch.int64), table).total
        return Case("rotary", f"{rows} rows, {turned} heads", moved, 0, make)

    def store(self, rows: int) -> Case:
        """Keys and values to their pages."""
        kv, dim = self.sizes.kv_heads, self.sizes.head_dim

        def make() -> Mapping[str, Call]:
            k, v = self.normal(rows, kv, dim), self.normal(rows, kv, dim)
            keys, values, slots = self._blocks(rows)
            return {
                OURS: partial(self.ops.store_kv, k, v, keys, values, slots),
                "torch operators": partial(TORCH.store_kv, k, v, keys, values, slots),
            }

        meta = self.meta(rows, kv, dim)
        moved = least.store_kv(meta, meta, self.meta(rows, dtype=torch.int64)).total
        return Case("store keys and values", f"{rows} rows, {kv} heads", moved, 0, make)

    def rotary_store(self, rows: int) -> Case:
        """Rotation and storing in one call, from the fused projection."""
        sizes = self.sizes

        def make() -> Mapping[str, Call]:
            heads, positions, table = self._heads(rows)
            args = heads, positions, table, *self._blocks(rows)
            return {
                OURS: partial(self.ops.rotary_store_, *args),
                "torch operators": partial(TORCH.rotary_store_, *args),
            }

        all_heads = sizes.heads + 2 * sizes.kv_heads
        index = self.meta(rows, dtype=torch.int64)
        moved = least.rotary_store(
            self.meta(rows, all_heads, sizes.head_dim),
            index,
            self.meta(4096, sizes.head_dim),
            self.meta(1, sizes.kv_heads, PAGE, sizes.head_dim),
            index,
        ).total
        return Case("rotary and store", f"{rows} rows, {all_heads} heads", moved, 0, make)

    def gate(self, rows: int, activation: Activation) -> Case:
        """The feed-forward's gate."""
        inner, silu = self.sizes.inner, activation == "silu"
        bend: Callable[[Tensor], Tensor] = F.silu if silu else partial(F.gelu, approximate="tanh")

        def make() -> Mapping[str, Call]:
            x = self.normal(rows, 2 * inner)
            gate, up = x[:, :inner], x[:, inner:]
            return {
                OURS: partial(self.ops.silu_and_mul if silu else self.ops.gelu_and_mul, x),
                f"torch {name}, mul": lambda: bend(gate) * up,
            }

        name = "silu" if silu else "gelu"
        moved = least.silu_and_mul(self.meta(rows, 2 * inner)).total
        return Case(f"{name} and multiply", f"{rows} x {inner}", moved, 0, make)

    def product(self, rows: int) -> Case:
        """The largest product of a layer; ours uses the vendor library, through torch."""
        width, outputs = self.sizes.hidden, 2 * self.sizes.inner

        def make() -> Mapping[str, Call]:
            x, weight = self.normal(rows, width), self.normal(outputs, width)
            out = torch.empty(rows, outputs, dtype=self.dtype, device=self.device)
            return {
                OURS: partial(self.ops.linear, x, weight),
                "torch mm": partial(torch.mm, x, weight.t(), out=out),
            }

        moved = least.linear(self.meta(rows, width), self.meta(outputs, width)).total
        # With few rows, reading the weight is the limit; with many, multiplying.
        flops = 2 * rows * width * outputs if rows == self.sizes.rows else 0
        return Case("gate-up product", f"{rows} x {width} x {outputs}", moved, flops, make)

    def sampling(self, name: str, params: SamplingParams) -> Case:
        """Drawing tokens from logits."""
        rows, vocab = self.sizes.draws, self.sizes.vocab

        def make() -> Mapping[str, Call]:
            logits = 4 * self.normal(rows, vocab)
            batch = sampling_batch(rows, params, self.device)
            kernel = self.ops.sample_kernel
            calls: dict[str, Call] = {}
            if kernel is not None:
                calls[OURS] = partial(kernel, logits, batch)
            if params.temperature == 0:
                calls["torch argmax"] = partial(torch.argmax, logits, -1)
            else:
                calls["torch operators"] = partial(Sampler().sample, logits, batch)
            return calls

        moved = rows * vocab * self.dtype.itemsize + 8 * rows
        waits = frozenset({"torch operators"})
        return Case(f"sampling, {name}", f"{rows} x {vocab}", moved, 0, make, waits)


SAMPLING = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=0.6),
    "top-p 0.9": SamplingParams(temperature=1.0, top_p=0.9),
}


def sampling_batch(rows: int, params: SamplingParams, device: torch.device) -> SamplingBatch:
    """`rows` requests that all draw with `params`."""
    asked = [Request(str(n), [0], params, arrival_s=0.0, seed=n) for n in range(rows)]
    batch: SamplingBatch = to_device(plan_sampling(asked), device)
    return batch
