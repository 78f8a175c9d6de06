"""Builders of batches: with contents, with padding, or only with the shape.

Vectorised over the batch, because the device may be idle while it runs. Knows requests and block
tables; knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from minserve.batch import ForwardBatch, GroupTables
from minserve.config import ResolvedConfig
from minserve.engine.prepare.rows import Rows
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
    """The requests whose next token is drawn, in the order of their sample rows."""
    prompt_owners: list[Request]
    """By prompt row: the request whose prompt token is scored by it."""
    first_rows: list[int] | None = None
    """By request in `sampled`: its first sample row. The next ones belong to its draft, one for
    each token. None: no request has a draft, so each has one sample row."""

    def draws(self) -> Iterable[tuple[int, Request]]:
        """(first sample row, request) of each request in `sampled`."""
        if self.first_rows is None:
            return enumerate(self.sampled)
        return zip(self.first_rows, self.sampled, strict=True)


class Builder(Protocol):
    """Turns a step's plan into the batch that the engine's runner takes."""

    def build(self, plan: StepPlan) -> BuiltBatch:
        """The batch of one step's plan."""
        ...


def batch_builder(
    config: ResolvedConfig,
    memory: KVManager,
    builder: Builder | None = None,
    needs_hidden: bool = False,
) -> Builder:
    """The builder of an engine's batches: `builder`, or one that fills in tensors; with padding if
    the configuration asks for it. `needs_hidden`: every batch asks for the residual stream."""
    model = config.model
    built = builder
    if built is None:
        built = BatchBuilder(memory, model.eos_token_ids, needs_hidden=needs_hidden)
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

    def __init__(
        self,
        memory: KVManager,
        eos_token_ids: tuple[int, ...],
        model: str = "",
        needs_hidden: bool = False,
    ) -> None:
        """`model`: whose cache groups its batches are about (`CacheGroup.model`)."""
        self._memory = memory
        self._groups = [g.tables for g in memory.groups if g.plan.group.model == model]
        self._eos_token_ids = eos_token_ids
        self._needs_hidden = needs_hidden

    def build(self, plan: StepPlan) -> BuiltBatch:
        """The batch of one step's plan."""
        requests, counts = plan.requests, plan.num_tokens
        rows = Rows()
        if max(counts) == 1 and all(r.params.prompt_logprobs is None for r in requests):
            rows.add_decode(requests)
        else:
            for request, count in zip(requests, counts, strict=True):
                rows.add(request, count, plan.drafts.get(request))
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
            places, owners = starts_array, np.arange(len(requests))
        else:
            owners = np.repeat(np.arange(len(requests)), query_lens)
            places = np.arange(len(tokens)) + (starts_array - query_starts[:-1])[owners]
        # A row's place in the block tables is its position, except in trees.
        positions = rows.tree_positions(places) if rows.trees else places
        blocks, offsets = np.divmod(places, block_size)
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
                rows.drawn_for,
                eos_token_ids=self._eos_token_ids,
                positions=rows.drawn_positions(),
                proposed=rows.proposed,
            ),
            prompt_rows=torch.tensor(rows.prompt_rows, dtype=torch.int64),
            prompt_targets=torch.tensor(rows.prompt_targets, dtype=torch.int64),
            num_prompt_logprobs=max(rows.prompt_counts, default=-1),
            query_lens=tuple(counts),
            context_lens=tuple(kv_lens.tolist()),
            pending=torch.tensor(rows.pending, dtype=torch.int64).T if rows.pending else None,
            prompt_counts=tuple(rows.prompt_counts),
            tree=rows.tree_masks() if rows.trees else None,
            needs_hidden=self._needs_hidden,
        )
        first_rows = rows.first_rows if plan.drafts else None
        return BuiltBatch(batch, rows.sampled, rows.prompt_owners, first_rows)
