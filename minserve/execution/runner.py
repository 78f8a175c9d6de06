"""From batches to tokens: `submit(batch)` starts a forward pass, `collect(handle)`
waits for its tokens.

Two calls instead of one, so that a device can work on one batch while the next is planned. Knows
only tensors; the engine knows requests, owners of pages and stop conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minserve.attention.base import AttentionBackend, AttentionPlan
from minserve.batch import ForwardBatch
from minserve.clock import Clock
from minserve.execution.staging import PendingCopy, link_to
from minserve.hardware.current import on
from minserve.kernels.base import LayerStack, Scores
from minserve.kernels.tree import check_tree
from minserve.layers import ForwardContext
from minserve.models import Compilations, Decoder
from minserve.request import TokenLogprobs
from minserve.sampling import (
    Logprobs,
    SampledTokens,
    Sampler,
    prompt_logprobs,
    sample_alone,
    to_token_logprobs,
)


class StepResult(NamedTuple):
    """The results of one forward pass, on the host."""

    token_ids: list[int]
    """One per sample row; -1 if a row's logits were not numbers."""
    logprobs: dict[int, TokenLogprobs]
    """By sample row, for the rows that asked for them."""
    prompt_logprobs: list[TokenLogprobs]
    """One per prompt row."""
    forward_s: float
    attention_s: float
    sample_s: float
    compile_s: float = 0.0
    """The part of `forward_s` spent on compilation."""
    num_compiled_graphs: int = 0
    num_cached_graphs: int = 0
    """See `StepTrace`."""
    errors: Mapping[int, Exception] | None = None
    """By sample row: the error raised while its token was drawn."""
    hidden: Tensor | None = None
    """`[num_samples, hidden_size]`, on the device: the residual stream after the last layer, from
    which each token was drawn; None unless `ForwardBatch.needs_hidden`."""
    touched: Mapping[tuple[int, str], int] | None = None
    """See `layers.Counters.touched`; None: no block counted anything."""


Handle = Any
"""A forward pass in flight: the data that the runner needs to collect it."""


class Runner(Protocol):
    """Runs forward passes. Handles are collected in the order they were submitted."""

    def submit(self, batch: ForwardBatch) -> Handle:
        """Start the pass. The batch's tensors are on the CPU and are not changed afterwards."""
        ...

    def collect(self, handle: Handle) -> StepResult:
        """Wait for the pass and return its tokens."""
        ...


NOTHING_COMPILED = Compilations()


class Forward(NamedTuple):
    """The results of a forward pass on the device, and what the host knows about it."""

    logits: Tensor | None
    """`[num_samples, vocab_size]`; None if no row is sampled."""
    prompts: tuple[Logprobs, ...] = ()
    """Log probabilities of the prompt rows, chunk by chunk."""
    attention_s: float = 0.0
    compiled: Compilations = NOTHING_COMPILED
    hidden: Tensor | None = None
    """See `StepResult.hidden`."""
    touched: Mapping[tuple[int, str], Tensor] | None = None
    """See `layers.Counters.touched`."""


@dataclass(frozen=True)
class _Results:
    """The data that goes back to the host."""

    sampled: SampledTokens | None
    prompts: tuple[Logprobs, ...]
    touched: tuple[Tensor, ...] = ()


class _EagerHandle(NamedTuple):
    batch: ForwardBatch
    """On the host."""
    landing: PendingCopy[_Results]
    forward_s: float
    attention_s: float
    sample_s: float
    compiled: Compilations
    errors: Mapping[int, Exception] | None
    """See `StepResult.errors`."""
    hidden: Tensor | None
    touched: tuple[tuple[int, str], ...] = ()
    """Where the numbers of `_Results.touched` were counted."""


class _TimedPlan:
    """An attention plan that measures its own time. Not used on a GPU, where calls return early."""

    def __init__(self, plan: AttentionPlan, clock: Clock) -> None:
        self._plan, self._clock = plan, clock
        self.elapsed_s = 0.0

    def store_rotated(
        self,
        heads: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        layer: int,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> Tensor:
        start = self._clock.now()
        q = self._plan.store_rotated(heads, positions, cos_sin, layer, q_norm, k_norm, eps)
        self.elapsed_s += self._clock.now() - start
        return q

    def store(self, k: Tensor, v: Tensor, layer: int) -> None:
        start = self._clock.now()
        self._plan.store(k, v, layer)
        self.elapsed_s += self._clock.now() - start

    def attend(
        self, q: Tensor, layer: int, scores: Scores, need_lse: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        start = self._clock.now()
        result = self._plan.attend(q, layer, scores, need_lse)
        self.elapsed_s += self._clock.now() - start
        return result

    def run_stack(
        self, stack: LayerStack, h: Tensor, positions: Tensor, start: int, stop: int
    ) -> float | None:
        elapsed_s = self._plan.run_stack(stack, h, positions, start, stop)
        self.elapsed_s += elapsed_s or 0.0
        return elapsed_s


def fill_pending(batch: ForwardBatch, drawn: Tensor | None) -> ForwardBatch:
    """The batch with the tokens that the pass before it drew, `[num_samples]`, in its pending rows.
    The host does not wait: the tokens stay on the device."""
    assert batch.pending is not None and drawn is not None, "nothing was drawn before this batch"
    rows, samples = batch.pending
    # A request whose draw failed ends when that step is collected; its row needs any valid token.
    tokens = drawn[samples].clamp_(min=0)
    return replace(batch, token_ids=batch.token_ids.index_copy(0, rows, tokens))


class EagerRunner:
    """Forward passes in this process, as its decoder runs them."""

    def __init__(
        self,
        decoder: Decoder,
        attention: AttentionBackend,
        device: torch.device,
        clock: Clock,
        logits_chunk: int,
    ) -> None:
        self._decoder = decoder
        self._attention = attention
        self._sampler = Sampler(decoder.ops.sample_kernel)
        self._device = device
        self._clock = clock
        self._logits_chunk = logits_chunk
        self._link = link_to(device)
        self._drawn: Tensor | None = None
        """The tokens of the pass submitted last, on the device."""

    @torch.inference_mode()
    def submit(self, batch: ForwardBatch) -> _EagerHandle:
        """Run the pass. On a GPU this only queues the pass and the copy of its
        tokens to the host."""
        with on(self._device):
            return self._submit(batch)

    def _submit(self, batch: ForwardBatch) -> _EagerHandle:
        start = self._clock.now()
        check_tree(batch.tree, batch.query_lens)
        there = self._link.upload(batch)
        if there.pending is not None:
            there = fill_pending(there, self._drawn)
        forward = self._forward(batch, there)
        middle = self._clock.now()
        sampled, errors = None, None
        if forward.logits is not None:
            try:
                sampled = self._sampler.sample(forward.logits, there.sampling)
            except Exception:
                sampled, errors = sample_alone(self._sampler, forward.logits, there.sampling)
        self._drawn = None if sampled is None else sampled.token_ids
        touched = forward.touched or {}
        landing = self._link.download(_Results(sampled, forward.prompts, tuple(touched.values())))
        return _EagerHandle(
            batch=batch,
            landing=landing,
            forward_s=middle - start,
            attention_s=forward.attention_s,
            sample_s=self._clock.now() - middle,
            compiled=forward.compiled,
            errors=errors,
            hidden=forward.hidden,
            touched=tuple(touched),
        )

    def _forward(self, host: ForwardBatch, batch: ForwardBatch) -> Forward:
        """Decoder and logits of `batch`; `host` is the same batch on the host."""
        plan = self._attention.plan(batch)
        timed = _TimedPlan(plan, self._clock) if self._device.type == "cpu" else None
        context = ForwardContext(batch, timed or plan)
        hidden = self._decoder.run_layers(self._decoder.embed(batch.token_ids), context)
        prompts = self._prompt_logprobs(hidden, batch)
        return Forward(
            logits=self._sample_logits(hidden, batch.sample_rows),
            prompts=prompts,
            attention_s=timed.elapsed_s if timed else 0.0,
            compiled=self._decoder.take_compilations(),
            hidden=hidden[batch.sample_rows] if batch.needs_hidden else None,
            touched=context.counters.touched or None,
        )

    def collect(self, handle: _EagerHandle) -> StepResult:
        """Wait for the tokens to arrive on the host."""
        start = self._clock.now()
        batch, results = handle.batch, handle.landing.wait()
        sampled = results.sampled
        token_ids: list[int] = [] if sampled is None else sampled.token_ids.tolist()
        logprobs: dict[int, TokenLogprobs] = {}
        if sampled is not None and sampled.logprobs is not None:
            rows = batch.sampling.logprob_rows.tolist()
            tokens = [token_ids[row] for row in rows]
            entries = to_token_logprobs(sampled.logprobs, tokens, batch.sampling.logprob_counts)
            logprobs = dict(zip(rows, entries, strict=True))
        prompts: list[TokenLogprobs] = []
        for part, targets in zip(results.prompts, self._chunks(batch.prompt_targets), strict=True):
            counts = batch.prompt_counts[len(prompts) : len(prompts) + len(targets)]
            prompts += to_token_logprobs(part, targets.tolist(), counts)
        touched = {
            where: int(count) for where, count in zip(handle.touched, results.touched, strict=True)
        }
        return StepResult(
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompts,
            forward_s=handle.forward_s,
            attention_s=handle.attention_s,
            sample_s=handle.sample_s + self._clock.now() - start,
            compile_s=handle.compiled.seconds,
            num_compiled_graphs=handle.compiled.num_graphs,
            num_cached_graphs=handle.compiled.num_cached,
            errors=handle.errors,
            hidden=handle.hidden,
            touched=touched or None,
        )

    def _sample_logits(self, hidden: Tensor, rows: Tensor) -> Tensor | None:
        if not rows.numel():
            return None
        if rows.numel() == hidden.shape[0]:
            return self._decoder.head(hidden)
        return self._decoder.head(hidden, rows)

    def _prompt_logprobs(self, hidden: Tensor, batch: ForwardBatch) -> tuple[Logprobs, ...]:
        """Computed in chunks: the logits of a long prompt would take more memory
        than its KV cache."""
        return tuple(
            prompt_logprobs(
                self._decoder.head(hidden, rows),
                targets,
                batch.num_prompt_logprobs,
            )
            for rows, targets in zip(
                self._chunks(batch.prompt_rows), self._chunks(batch.prompt_targets), strict=True
            )
        )

    def _chunks(self, rows: Tensor) -> Iterator[Tensor]:
        for start in range(0, rows.shape[0], self._logits_chunk):
            yield rows[start : start + self._logits_chunk]
