"""The calls that are timed: our kernels and what torch offers for the same, at a model's shapes.

A case makes fresh buffers every time it is asked, so that a timing can go round many of them. Bytes
and FLOPs are counted from shapes by `kernels.least` and by the pairs attention sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minserve.batch import SamplingBatch, to_device
from minserve.bench.gpu.timing import Call
from minserve.kernels import least
from minserve.kernels.base import Ops
from minserve.kernels.least_ops import pairs
from minserve.kernels.reference import TorchOps
from minserve.request import Request, SamplingParams
from minserve.sampling import Sampler, plan_sampling

OURS = "minserve"
PAGE = 16


@dataclass(frozen=True)
class Sizes:
    """The model whose rows these are: Llama-3.1-8B's, or a dry run's."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    rows: int
    """Of a prefill chunk."""
    few: int
    """Of a decode step."""
    draws: int
    """Rows of logits."""
    decodes: tuple[tuple[int, int], ...]
    """(requests, context of each)."""
    prefills: tuple[tuple[int, int], ...]
    """(requests, tokens of each), whole prompts."""
    flex: frozenset[tuple[int, int]]
    """Those of them at which flex attention is compiled too: it takes seconds each."""


REAL = Sizes(
    4096, 32, 8, 128, 14_336, 128_256, 4096, 64, 256,
    decodes=((1, 4096), (8, 4096), (64, 1024), (64, 4096), (256, 1024), (1, 32_768)),
    prefills=((1, 2048), (1, 8192), (8, 1024)),
    flex=frozenset({(64, 4096), (1, 8192)}),
)  # fmt: skip
TOY = Sizes(
    64, 4, 2, 16, 96, 300, 5, 2, 1,
    decodes=((2, 40),), prefills=((1, 20),), flex=frozenset({(2, 40), (1, 20)}),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One operator at one shape."""

    name: str
    shape: str
    moved: int
    """Least bytes of a call."""
    flops: int
    """Of products; 0 where bytes are the limit."""
    make: Callable[[], Mapping[str, Call]]
    """Fresh buffers -> the call of each side on them."""
    uncapturable: frozenset[str] = frozenset()
    """Sides that wait for the host."""


class Maker:
    """Makes cases for one set of operators, device and number format."""

    def __init__(self, ops: Ops, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> None:
        self.ops, self.sizes, self.device, self.dtype = ops, sizes, device, dtype
        self.torch = TorchOps()
        self._masks: dict[int, object] = {}

    def cases(self) -> list[Case]:
        """All of them, the most telling first, should time run out."""
        sizes = self.sizes
        found = [self.decode(*each) for each in sizes.decodes]
        found += [self.prefill(*each) for each in sizes.prefills]
        for rows in (sizes.rows, sizes.few):
            found += [self.add_norm(rows), self.rotary_store(rows), self.gate(rows)]
            found += [self.product(rows), self.norm(rows), self.rotary(rows), self.store(rows)]
        found += [self.sampling(name, params) for name, params in SAMPLING.items()]
        return [*found, self.some_rows()]

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def _meta(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta")

    def norm(self, rows: int) -> Case:
        """RMSNorm."""
        width = self.sizes.hidden

        def make() -> Mapping[str, Call]:
            x, weight = self._normal(rows, width), self._normal(width)
            return {
                OURS: partial(self.ops.rms_norm, x, weight, 1e-5),
                "torch rms_norm": partial(F.rms_norm, x, (width,), weight, 1e-5),
            }

        moved = least.rms_norm(self._meta(rows, width), self._meta(width)).total
        return Case("rms norm", f"{rows} x {width}", moved, 0, make)

    def some_rows(self) -> Case:
        """The norm of rows picked from a chunk."""
        width, rows, some = self.sizes.hidden, self.sizes.rows, max(1, self.sizes.rows // 4)

        def make() -> Mapping[str, Call]:
            x, weight = self._normal(rows, width), self._normal(width)
            chosen = torch.randperm(rows, device=self.device)[:some]
            return {
                OURS: partial(self.ops.rms_norm_rows, x, chosen, weight, 1e-5),
                "torch, gather then rms_norm": lambda: F.rms_norm(
                    x[chosen], (width,), weight, 1e-5
                ),
            }

        chosen = self._meta(some, dtype=torch.int64)
        moved = least.rms_norm_rows(self._meta(rows, width), chosen, self._meta(width)).total
        return Case("rms norm of some rows", f"{some} of {rows} x {width}", moved, 0, make)

    def add_norm(self, rows: int) -> Case:
        """Residual addition and RMSNorm."""
        width = self.sizes.hidden

        def make() -> Mapping[str, Call]:
            x, residual, weight = (self._normal(rows, width), self._normal(rows, width),
                                   self._normal(width))  # fmt: skip
            # What is added again and again must not grow beyond the format.
            x *= 1e-4
            return {
                OURS: partial(self.ops.add_rms_norm, x, residual, weight, 1e-5),
                "torch add_, rms_norm": lambda: F.rms_norm(
                    residual.add_(x), (width,), weight, 1e-5
                ),
            }

        meta = self._meta(rows, width)
        moved = least.add_rms_norm(meta, meta, self._meta(width)).total
        return Case("add, rms norm", f"{rows} x {width}", moved, 0, make)

    def _heads(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """A fused projection, its positions, and the rotary table."""
        sizes = self.sizes
        heads = self._normal(rows, sizes.heads + 2 * sizes.kv_heads, sizes.head_dim)
        angles = torch.rand(4096, sizes.head_dim // 2, device=self.device)
        table = torch.cat((angles.cos(), angles.sin()), -1).to(self.dtype)
        return heads, torch.randint(0, 4096, (rows,), device=self.device), table

    def _pages(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values, and a free slot for every row, in no order."""
        sizes = self.sizes
        blocks = -(-rows // PAGE)
        keys, values = (self._normal(blocks, sizes.kv_heads, PAGE, sizes.head_dim)
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
                "torch operators": partial(self.torch.rotary_, x, positions, table),
            }

        x = self._meta(rows, turned, self.sizes.head_dim)
        table = self._meta(4096, self.sizes.head_dim)
        moved = least.rotary(x, self._meta(rows, dtype=torch.int64), table).total
        return Case("rotary", f"{rows} rows, {turned} heads", moved, 0, make)

    def store(self, rows: int) -> Case:
        """Keys and values to their pages."""
        kv, dim = self.sizes.kv_heads, self.sizes.head_dim

        def make() -> Mapping[str, Call]:
            k, v = self._normal(rows, kv, dim), self._normal(rows, kv, dim)
            keys, values, slots = self._pages(rows)
            return {
                OURS: partial(self.ops.store_kv, k, v, keys, values, slots),
                "torch operators": partial(self.torch.store_kv, k, v, keys, values, slots),
            }

        meta = self._meta(rows, kv, dim)
        moved = least.store_kv(meta, meta, self._meta(rows, dtype=torch.int64)).total
        return Case("store keys and values", f"{rows} rows, {kv} heads", moved, 0, make)

    def rotary_store(self, rows: int) -> Case:
        """Both in one go, from the fused projection."""
        sizes = self.sizes

        def make() -> Mapping[str, Call]:
            heads, positions, table = self._heads(rows)
            args = heads, positions, table, *self._pages(rows)
            return {
                OURS: partial(self.ops.rotary_store_, *args),
                "torch operators": partial(self.torch.rotary_store_, *args),
            }

        all_heads = sizes.heads + 2 * sizes.kv_heads
        index = self._meta(rows, dtype=torch.int64)
        moved = least.rotary_store(
            self._meta(rows, all_heads, sizes.head_dim),
            index,
            self._meta(4096, sizes.head_dim),
            self._meta(1, sizes.kv_heads, PAGE, sizes.head_dim),
            index,
        ).total
        return Case("rotary and store", f"{rows} rows, {all_heads} heads", moved, 0, make)

    def gate(self, rows: int) -> Case:
        """The feed-forward's gate."""
        inner = self.sizes.inner

        def make() -> Mapping[str, Call]:
            x = self._normal(rows, 2 * inner)
            gate, up = x[:, :inner], x[:, inner:]
            return {
                OURS: partial(self.ops.silu_and_mul, x),
                "torch silu, mul": lambda: F.silu(gate) * up,
            }

        moved = least.silu_and_mul(self._meta(rows, 2 * inner)).total
        return Case("silu and multiply", f"{rows} x {inner}", moved, 0, make)

    def product(self, rows: int) -> Case:
        """The largest product of a layer; ours is the vendor library's, through torch."""
        width, outputs = self.sizes.hidden, 2 * self.sizes.inner

        def make() -> Mapping[str, Call]:
            x, weight = self._normal(rows, width), self._normal(outputs, width)
            out = torch.empty(rows, outputs, dtype=self.dtype, device=self.device)
            return {
                OURS: partial(self.ops.linear, x, weight),
                "torch mm": partial(torch.mm, x, weight.t(), out=out),
            }

        moved = least.linear(self._meta(rows, width), self._meta(outputs, width)).total
        # Few rows read the weight, many multiply by it.
        flops = 2 * rows * width * outputs if rows == self.sizes.rows else 0
        return Case("gate-up product", f"{rows} x {width} x {outputs}", moved, flops, make)

    def decode(self, requests: int, context: int) -> Case:
        """One row per request over pages in no order, against contiguous keys and values."""
        sizes = self.sizes
        group = sizes.heads // sizes.kv_heads

        def make() -> Mapping[str, Call]:
            calls = dict(self._paged((1,) * requests, (context,) * requests))
            q = self._normal(requests, sizes.heads, 1, sizes.head_dim)
            k, v = (self._normal(requests, sizes.kv_heads, context, sizes.head_dim)
                    for _ in range(2))  # fmt: skip
            packed = q.view(requests, sizes.kv_heads, group, sizes.head_dim)
            attend = F.scaled_dot_product_attention
            calls["torch sdpa, grouped"] = partial(attend, q, k, v, enable_gqa=True)
            # The heads that share keys as rows of one query: nothing is masked in a decode.
            calls["torch sdpa, heads as rows"] = partial(attend, packed, k, v)
            if (requests, context) in sizes.flex:
                calls["torch flex_attention"] = partial(self._flex(), q, k, v, enable_gqa=True)
            return calls

        moved = self._attention_bytes((1,) * requests, (context,) * requests)
        return Case("attention, decode", f"{requests} x {context} tokens", moved, 0, make)

    def prefill(self, requests: int, tokens: int) -> Case:
        """Whole prompts, causal."""
        sizes, lens = self.sizes, (tokens,) * requests

        def make() -> Mapping[str, Call]:
            calls = dict(self._paged(lens, lens))
            q = self._normal(requests, sizes.heads, tokens, sizes.head_dim)
            k, v = (self._normal(requests, sizes.kv_heads, tokens, sizes.head_dim)
                    for _ in range(2))  # fmt: skip
            calls["torch sdpa, grouped"] = partial(
                F.scaled_dot_product_attention, q, k, v, is_causal=True, enable_gqa=True
            )
            if (requests, tokens) in sizes.flex:
                calls["torch flex_attention"] = partial(
                    self._flex(), q, k, v, block_mask=self._causal(tokens), enable_gqa=True
                )
            return calls

        flops = 4 * sizes.heads * sizes.head_dim * requests * pairs((tokens,), (tokens,), None)
        moved = self._attention_bytes(lens, lens)
        return Case("attention, prefill", f"{requests} x {tokens} tokens", moved, flops, make)

    def _paged(
        self, query_lens: tuple[int, ...], context_lens: tuple[int, ...]
    ) -> Mapping[str, Call]:
        """Ours, and for decodes ours with every context whole."""
        sizes, requests = self.sizes, len(query_lens)
        pages = -(-context_lens[0] // PAGE)
        keys, values = (self._normal(requests * pages, sizes.kv_heads, PAGE, sizes.head_dim)
                        for _ in range(2))  # fmt: skip
        order = torch.randperm(requests * pages, device=self.device).to(torch.int32)
        tables = order.view(requests, pages)
        starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32).to(self.device)
        lens = torch.tensor(context_lens, dtype=torch.int32, device=self.device)
        q = self._normal(sum(query_lens), sizes.heads, sizes.head_dim)
        scale = sizes.head_dim**-0.5

        def call(ops: Ops) -> Call:
            planned = ops.plan_attention(tables, starts, lens, query_lens, context_lens)
            return partial(planned, q, keys, values, scale, None)

        calls = {OURS: call(self.ops)}
        if self.ops.name == "triton" and max(query_lens) == 1:
            from minserve.kernels.triton import TritonOps

            calls[f"{OURS}, not split"] = call(TritonOps(split=False))
        return calls

    def _attention_bytes(self, query_lens: tuple[int, ...], context_lens: tuple[int, ...]) -> int:
        sizes = self.sizes
        q = self._meta(sum(query_lens), sizes.heads, sizes.head_dim)
        pages = self._meta(1, sizes.kv_heads, PAGE, sizes.head_dim)
        return least.attention(q, pages, query_lens, context_lens).total

    def _flex(self) -> Callable[..., object]:
        """Compiled, as it is meant to be used; as it is on a CPU, where compiling takes long."""
        from torch.nn.attention.flex_attention import flex_attention

        if self.device.type != "cuda":
            return flex_attention
        # Static: its kernel for this very shape, as ours has one.
        compiled: Callable[..., object] = torch.compile(flex_attention, dynamic=False)
        return compiled

    def _causal(self, tokens: int) -> object:
        from torch.nn.attention.flex_attention import create_block_mask

        if tokens not in self._masks:
            # One for all sets of buffers: another one would be another compilation.
            self._masks[tokens] = create_block_mask(
                _sees, None, None, tokens, tokens, device=str(self.device)
            )
        return self._masks[tokens]

    def sampling(self, name: str, params: SamplingParams) -> Case:
        """Logits to tokens."""
        rows, vocab = self.sizes.draws, self.sizes.vocab

        def make() -> Mapping[str, Call]:
            logits = 4 * self._normal(rows, vocab)
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


def _sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Causal, as flex attention wants to be told."""
    return query >= key


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
