"""Decode steps as captured graphs: one launch replays hundreds of recorded launches.

A graph repeats exactly what was launched while it was captured: the same kernels, grids, addresses
and integers. So everything that changes from step to step must be in buffers with fixed addresses,
and everything else must be part of the graph's key. Both hold by construction:
`GraphRunner.prepare` makes the step from **the key and the static buffers alone**, and never sees
the batch. Rows are padded to a fixed list of row counts (`padding`), and of the contexts only the
bucket is known; the padding uses its own page. The sampler runs outside the graph, on the real
rows. Steps that are not plain decode steps run as in `EagerRunner`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from minserve.attention.base import AttentionBackend
from minserve.batch import ForwardBatch, GroupTables
from minserve.clock import Clock
from minserve.execution.padding import ladder
from minserve.execution.runner import NOTHING_COMPILED, EagerRunner, Forward
from minserve.layers import Counters, ForwardContext
from minserve.models import Compilations, Decoder
from minserve.sampling import plan_sampling

LEAST_CONTEXT = 64
"""The smallest bucket of contexts, in tokens; each next bucket is four times as large. A bucket
only decides into how many parts a context is split, and parts without keys cost almost nothing. Few
buckets mean few graphs to capture."""


@dataclass(frozen=True)
class GraphKey:
    """All integers that the launches of a decode step depend on, besides those of the engine."""

    rows: int
    longest: int
    """Longest context of the bucket, in tokens."""


class Capture(Protocol):
    """Turns a function into one that can be repeated cheaply."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """A function that repeats `run`, which is called at least once here. Calling it any number
        of times has the same effect as calling it once. Everything that `run` reads and writes must
        outlive the result."""
        ...


class CudaCapture:
    """CUDA graphs that share one memory pool, because only one of them runs at a time. A capture
    waits for the device; a replay does not."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `Capture.capture`."""
        compute = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(compute)
        with torch.cuda.stream(self._stream):
            # Triton compiles and cuBLAS allocates its workspace here; neither is allowed
            # during a capture.
            run()
        graph = torch.cuda.CUDAGraph()
        # Thread-local: calls of another engine's thread to the device must not end this capture.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            run()
        compute.wait_stream(self._stream)
        return graph.replay


class Rerun:
    """For a device that captures nothing: repeats the step as it was prepared, with its plan and
    its integers. An input that a graph would miss is missing here too."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """See `Capture.capture`."""
        return run


class StaticInputs:
    """The tensors that all graphs read: a graph of r rows reads the first r rows. `fill` copies a
    batch into them; `batch` is the batch as far as a key determines it."""

    def __init__(
        self, max_rows: int, num_groups: int, max_blocks: int, device: torch.device
    ) -> None:
        self._token_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros_like(self._token_ids)
        self._kv_lens = torch.ones(max_rows, dtype=torch.int32, device=device)
        self._query_starts = torch.arange(max_rows + 1, dtype=torch.int32, device=device)
        self._groups = [
            GroupTables(
                torch.zeros(max_rows, dtype=torch.int64, device=device),
                torch.zeros(max_rows, max_blocks, dtype=torch.int32, device=device),
            )
            for _ in range(num_groups)
        ]
        self._none = self._token_ids[:0]
        self._sampling = plan_sampling([], eos_token_ids=())

    def fill(self, batch: ForwardBatch) -> None:
        """Copy a batch of one row per request into these tensors, on the device. Entries
        beyond its block tables keep the pages of earlier steps; they are beyond every context
        and are not read."""
        rows = batch.num_tokens
        self._token_ids[:rows].copy_(batch.token_ids)
        self._positions[:rows].copy_(batch.positions)
        self._kv_lens[:rows].copy_(batch.kv_lens)
        for group, given in zip(self._groups, batch.groups, strict=True):
            group.slots[:rows].copy_(given.slots)
            width = given.block_tables.shape[1]
            group.block_tables[:rows, :width].copy_(given.block_tables)

    def batch(self, key: GraphKey) -> ForwardBatch:
        """Views of these tensors, as the batch of any step with this key; it samples nothing."""
        rows = key.rows
        return ForwardBatch(
            token_ids=self._token_ids[:rows],
            positions=self._positions[:rows],
            query_starts=self._query_starts[: rows + 1],
            kv_lens=self._kv_lens[:rows],
            groups=tuple(
                GroupTables(group.slots[:rows], group.block_tables[:rows]) for group in self._groups
            ),
            sample_rows=self._none,
            sampling=self._sampling,
            prompt_rows=self._none,
            prompt_targets=self._none,
            num_prompt_logprobs=-1,
            query_lens=(1,) * rows,
            context_lens=(key.longest,) * rows,
        )


class GraphRunner(EagerRunner):
    """An `EagerRunner` that replays its decode steps.

    Batches must be padded to `ladder(max_rows)`; `max_blocks` is the most pages a request has. What
    blocks count (`layers.Counters`) is read after every replay, as from any other step.
    """

    def __init__(
        self,
        decoder: Decoder,
        attention: AttentionBackend,
        device: torch.device,
        clock: Clock,
        logits_chunk: int,
        max_rows: int,
        max_blocks: int,
        block_size: int,
        capture: Capture | None = None,
    ) -> None:
        super().__init__(decoder, attention, device, clock, logits_chunk)
        if capture is None:
            capture = CudaCapture(device) if device.type == "cuda" else Rerun()
        self._capture = capture
        self._rungs = frozenset(ladder(max_rows))
        self._capacity = max_blocks * block_size
        weights, spec = decoder.weights, decoder.spec
        self._inputs = StaticInputs(max_rows, len(spec.cache_groups()), max_blocks, device)
        self._logits = torch.empty(
            max_rows, spec.vocab_size, dtype=weights.dtype, device=weights.device
        )
        self._hidden = torch.empty(
            max_rows, spec.hidden_size, dtype=weights.dtype, device=weights.device
        )
        self._graphs: dict[GraphKey, tuple[Callable[[], None], Counters]] = {}

    def key(self, batch: ForwardBatch) -> GraphKey | None:
        """The key of a batch's graph; None if the batch is not a decode step of a captured size."""
        rows = batch.num_tokens
        if rows != batch.num_requests or rows not in self._rungs:
            return None
        if batch.tree is not None or batch.prompt_rows.numel():
            return None
        longest = max(batch.context_lens)
        bucket = LEAST_CONTEXT
        while bucket < longest:
            bucket *= 4
        return GraphKey(rows, min(bucket, self._capacity))

    def prepare(self, key: GraphKey, counters: Counters | None = None) -> Callable[[], None]:
        """A function that runs a step of this key, from the static inputs to the hidden states,
        logits and `counters`; nothing runs yet."""
        batch = self._inputs.batch(key)
        plan = self._attention.plan_decode(batch)
        hidden, logits = self._hidden[: key.rows], self._logits[: key.rows]

        def run() -> None:
            context = ForwardContext(batch, plan)
            hidden.copy_(self._decoder.run_layers(self._decoder.embed(batch.token_ids), context))
            logits.copy_(self._decoder.head(hidden))
            if counters is not None:
                counters.touched.update(context.counters.touched)

        return run

    def _forward(self, host: ForwardBatch, batch: ForwardBatch) -> Forward:
        """See `EagerRunner._forward`."""
        key = self.key(host)
        if key is None:
            return super()._forward(host, batch)
        self._inputs.fill(batch)
        made = NOTHING_COMPILED
        if key not in self._graphs:
            start, counters = self._clock.now(), Counters()
            self._graphs[key] = self._capture.capture(self.prepare(key, counters)), counters
            made = Compilations(self._clock.now() - start, 1)
        replay, counters = self._graphs[key]
        replay()
        return Forward(
            self._sampled(host, batch),
            compiled=made,
            # Copied: the next step overwrites the buffer.
            hidden=self._hidden[batch.sample_rows] if host.needs_hidden else None,
            touched={where: count.clone() for where, count in counters.touched.items()} or None,
        )

    def _sampled(self, host: ForwardBatch, batch: ForwardBatch) -> Tensor | None:
        """The logits of the rows whose token is drawn: usually all rows except padding."""
        count = host.num_samples
        if not count:
            return None
        if int(host.sample_rows[-1]) == count - 1:
            return self._logits[:count]
        return self._logits.index_select(0, batch.sample_rows)
