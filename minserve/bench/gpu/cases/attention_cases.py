"""Attention over pages: ours compared with torch's operators over contiguous keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minserve.bench.gpu.cases.kernel_cases import OURS, PAGE, Buffers, Case
from minserve.bench.gpu.timing import Call
from minserve.kernels.base import Ops, Scores
from minserve.kernels.counts import least
from minserve.kernels.counts.least_ops import pairs


class AttentionCases(Buffers):
    """Decodes and whole prompts."""

    def cases(self) -> list[Case]:
        """Decodes and prefills, at every size."""
        found = [self.decode(*each) for each in self.sizes.decodes]
        return found + [self.prefill(*each) for each in self.sizes.prefills]

    def decode(self, requests: int, context: int) -> Case:
        """One row per request over shuffled pages, against contiguous keys and values."""
        sizes = self.sizes
        group = sizes.heads // sizes.kv_heads

        def make() -> Mapping[str, Call]:
            calls = dict(self._paged((1,) * requests, (context,) * requests))
            q = self.normal(requests, sizes.heads, 1, sizes.head_dim)
            k, v = (self.normal(requests, sizes.kv_heads, context, sizes.head_dim)
                    for _ in range(2))  # fmt: skip
            packed = q.view(requests, sizes.kv_heads, group, sizes.head_dim)
            attend = F.scaled_dot_product_attention
            calls["torch sdpa, grouped"] = partial(attend, q, k, v, enable_gqa=True)
            # The heads that share keys are the rows of one query, because a decode masks nothing.
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
            q = self.normal(requests, sizes.heads, tokens, sizes.head_dim)
            k, v = (self.normal(requests, sizes.kv_heads, tokens, sizes.head_dim)
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
        """Ours, and for decodes also ours without splitting contexts."""
        sizes, requests = self.sizes, len(query_lens)
        blocks = -(-context_lens[0] // PAGE)
        keys, values = (self.normal(requests * blocks, sizes.kv_heads, PAGE, sizes.head_dim)
                        for _ in range(2))  # fmt: skip
        order = torch.randperm(requests * blocks, device=self.device).to(torch.int32)
        tables = order.view(requests, blocks)
        starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32).to(self.device)
        lens = torch.tensor(context_lens, dtype=torch.int32, device=self.device)
        q = self.normal(sum(query_lens), sizes.heads, sizes.head_dim)
        scores = Scores(sizes.head_dim**-0.5)

        def call(ops: Ops) -> Call:
            planned = ops.plan_attention(tables, starts, lens, query_lens, context_lens)
            return partial(planned, q, keys, values, scores)

        calls = {OURS: call(self.ops)}
        if self.ops.name == "triton" and max(query_lens) == 1:
            from minserve.kernels.triton import TritonOps

            calls[f"{OURS}, not split"] = call(TritonOps(split=False))
        return calls

    def _attention_bytes(self, query_lens: tuple[int, ...], context_lens: tuple[int, ...]) -> int:
        sizes = self.sizes
        q = self.meta(sum(query_lens), sizes.heads, sizes.head_dim)
        blocks = self.meta(1, sizes.kv_heads, PAGE, sizes.head_dim)
        return least.attention(q, blocks, query_lens, context_lens).total

    def _flex(self) -> Callable[..., object]:
        """Compiled, as it is meant to be used; uncompiled on a CPU, where compiling takes long."""
        from torch.nn.attention.flex_attention import flex_attention

        if self.device.type != "cuda":
            return flex_attention
        # Static: a kernel for exactly this shape, like ours.
        compiled: Callable[..., object] = torch.compile(flex_attention, dynamic=False)
        return compiled

    def _causal(self, tokens: int) -> object:
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(_sees, None, None, tokens, tokens, device=str(self.device))


def _sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A causal mask, in the form that flex attention needs."""
    return query >= key
