"""From a step's plan to its `ForwardBatch`: the only file that turns requests into tensors.

Vectorised over the batch, because the device may be idle while it runs. Knows requests and block
tables; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from minserve.batch import ForwardBatch, GroupTables
from minserve.config import ResolvedConfig
from minserve.execution.padding import pad
from minserve.memory import KVManager
from minserve.request import Request
from minserve.sampling import plan_sampling
from minserve.scheduling import StepPlan


@dataclass(frozen=True)
class BuiltBatch:
    """A batch, and the request that each of its results belongs to."""

    batch: ForwardBatch
    """On the CPU."""
    sampled: list[Request]
    """By sample row: the request whose next token is drawn from it."""
    prompt_owners: list[Request]
    """By prompt row: the request whose prompt token is scored by it."""


class Builder(Protocol):
    """Turns a step's plan into the batch that the engine's runner takes."""

    def build(self, plan: StepPlan) -> BuiltBatch:
        """The batch of one step's plan."""
        ...


def batch_builder(
    config: ResolvedConfig, memory: KVManager, builder: Builder | None = None
) -> Builder:
    """The builder of an engine's batches: `builder`, or one that fills in tensors; with padding if
    the configuration asks for it."""
    model = config.model
    built = builder
    if built is None:
        built = BatchBuilder(memory, model.eos_token_ids)
    if config.padding == "none":
        return built
    # Padding rows write to one extra page after each group's own pages; the cache has it if padding
    # is on (see `build`).
    mine = (group for group in memory.groups if not group.plan.group.model)
    scratch_blocks = [group.pool.num_blocks for group in mine]
    return PaddedBuilder(
        built, config.padding, scratch_blocks, memory.block_size, config.max_graph_rows
    )


class PaddedBuilder:
    """Adds padding to another builder's batches (`ResolvedConfig.padding`).

    The work counter and the runner both see the padded batch.
    """

    def __init__(
        self,
        builder: Builder,
        kind: str,
        scratch_blocks: Sequence[int],
        block_size: int,
        most_rows: int,
    ) -> None:
        self._builder = builder
        self._kind = kind
        self._scratch_blocks = scratch_blocks
        self._block_size = block_size
        self._most_rows = most_rows

    def build(self, plan: StepPlan) -> BuiltBatch:
        """The batch of one step's plan, with padding after the requests' own rows."""
        built = self._builder.build(plan)
        batch = pad(
            built.batch,
            self._kind,
            self._scratch_blocks,
            self._block_size,
            self._most_rows,
            plan.idle_places,
        )
        return replace(built, batch=batch)


class ShapeBuilder:
    """Builds batches of the right shape without contents, for a runner that computes nothing.

    Filling in tensors would take a third of the time of a virtual run. No prompt is scored.
    """

    def __init__(self, max_num_batched_tokens: int) -> None:
        self._rows = torch.zeros(max_num_batched_tokens, dtype=torch.int64)
        self._none = self._rows[:0]
        self._sampling = plan_sampling([], eos_token_ids=())

    def build(self, plan: StepPlan) -> BuiltBatch:
        """The shape of one step's batch; every tensor in it is empty or holds zeros."""
        sampled, context_lens = [], []
        for request, count in zip(plan.requests, plan.num_tokens, strict=True):
            stop = request.num_computed_tokens + request.num_inflight_tokens + count
            context_lens.append(stop)
            if stop == request.num_coming_tokens:
                sampled.append(request)
        rows, none = self._rows[: sum(plan.num_tokens)], self._none
        batch = ForwardBatch(
            token_ids=rows,
            positions=rows,
            query_starts=none,
            kv_lens=none,
            groups=(),
            sample_rows=self._rows[: len(sampled)],
            sampling=self._sampling,
            prompt_rows=none,
            prompt_targets=none,
            num_prompt_logprobs=-1,
            query_lens=tuple(plan.num_tokens),
            context_lens=tuple(context_lens),
        )
        return BuiltBatch(batch, sampled, [])


class BatchBuilder:
    """Builds the batches of one engine."""

    def __init__(self, memory: KVManager, eos_token_ids: tuple[int, ...], model: str = "") -> None:
        """`model`: whose cache groups its batches are about (`CacheGroup.model`)."""
        self._memory = memory
        self._groups = [g.tables for g in memory.groups if g.plan.group.model == model]
        self._eos_token_ids = eos_token_ids

    def build(self, plan: StepPlan) -> BuiltBatch:
        """The batch of one step's plan."""
        requests, counts = plan.requests, plan.num_tokens
        rows = _Rows()
        if max(counts) == 1 and all(r.params.prompt_logprobs is None for r in requests):
            rows.add_decode(requests)
        else:
            for request, count in zip(requests, counts, strict=True):
                rows.add(request, count)
        tokens, starts = rows.tokens, rows.starts

        query_lens = np.array(counts, dtype=np.int64)
        starts_array = np.array(starts, dtype=np.int64)
        kv_lens = starts_array + query_lens
        query_starts = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(query_lens, out=query_starts[1:])
        block_size = self._memory.block_size
        table_rows = self._memory.rows_of(requests)
        width = -(-int(kv_lens.max()) // block_size)
        if len(tokens) == len(requests):
            positions, owners = starts_array, np.arange(len(requests))
        else:
            owners = np.repeat(np.arange(len(requests)), query_lens)
            positions = np.arange(len(tokens)) + (starts_array - query_starts[:-1])[owners]
        blocks, offsets = np.divmod(positions, block_size)
        groups = []
        for group in self._groups:
            tables = group.rows[table_rows, :width]
            slots = tables[owners, blocks] * np.int64(block_size) + offsets
            groups.append(GroupTables(torch.from_numpy(slots), torch.from_numpy(tables)))
        batch = ForwardBatch(
            token_ids=torch.tensor(tokens, dtype=torch.int64),
            positions=torch.from_numpy(positions),
            query_starts=torch.from_numpy(query_starts.astype(np.int32)),
            kv_lens=torch.from_numpy(kv_lens.astype(np.int32)),
            groups=tuple(groups),
            sample_rows=torch.tensor(rows.sample_rows, dtype=torch.int64),
            sampling=plan_sampling(
                rows.sampled,
                eos_token_ids=self._eos_token_ids,
                positions=[request.num_coming_tokens for request in rows.sampled],
            ),
            prompt_rows=torch.tensor(rows.prompt_rows, dtype=torch.int64),
            prompt_targets=torch.tensor(rows.prompt_targets, dtype=torch.int64),
            num_prompt_logprobs=max(rows.prompt_counts, default=-1),
            query_lens=tuple(counts),
            context_lens=tuple(kv_lens.tolist()),
            pending=torch.tensor(rows.pending, dtype=torch.int64).T if rows.pending else None,
            prompt_counts=tuple(rows.prompt_counts),
        )
        return BuiltBatch(batch, rows.sampled, rows.prompt_owners)


class _Rows:
    """The lists that are gathered request by request: the only part of a batch built in a Python
    loop."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.starts: list[int] = []
        self.sampled: list[Request] = []
        self.sample_rows: list[int] = []
        self.pending: list[tuple[int, int]] = []
        self.prompt_rows: list[int] = []
        self.prompt_targets: list[int] = []
        self.prompt_owners: list[Request] = []
        self.prompt_counts: list[int] = []

    def add_decode(self, requests: list[Request]) -> None:
        """Add one row per request: the common step, without the work that only prompts need."""
        self.starts = [r.num_computed_tokens + r.num_inflight_tokens for r in requests]
        for row, (request, at) in enumerate(zip(requests, self.starts, strict=True)):
            known = request.token_ids
            self.tokens.append(known[at] if at < len(known) else self._pending(request, row))
        ahead = [r.num_coming_tokens - at for r, at in zip(requests, self.starts, strict=True)]
        self.sample_rows = [row for row, missing in enumerate(ahead) if missing == 1]
        self.sampled = [requests[row] for row in self.sample_rows]

    def add(self, request: Request, count: int) -> None:
        """Add the next `count` tokens of a request."""
        start = request.num_computed_tokens + request.num_inflight_tokens
        known, stop = request.token_ids, start + count
        if request.params.prompt_logprobs is not None:
            self._add_prompt_rows(request, start, stop)
        self.starts.append(start)
        self.tokens.extend(known[start:stop])
        if stop > len(known):
            self.tokens.append(self._pending(request, len(self.tokens)))
        if stop == request.num_coming_tokens:
            self.sampled.append(request)
            self.sample_rows.append(len(self.tokens) - 1)

    def _pending(self, request: Request, row: int) -> int:
        """Record that the device fills in the token of `row`; returns the placeholder until
        then."""
        self.pending.append((row, request.pending_row))
        return 0

    def _add_prompt_rows(self, request: Request, start: int, stop: int) -> None:
        wanted = request.params.prompt_logprobs or 0
        first_row = len(self.tokens) - start
        # Start at the first position that has no result yet: a resumed request gets no result
        # twice.
        for position in range(
            max(start, len(request.prompt_logprobs) - 1), min(stop, request.num_prompt_tokens - 1)
        ):
            self.prompt_rows.append(first_row + position)
            self.prompt_targets.append(request.token_ids[position + 1])
            self.prompt_owners.append(request)
            self.prompt_counts.append(wanted)
