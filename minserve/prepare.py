"""From a step's plan to its `ForwardBatch`: the one place where requests become tensors.

Vectorised over the batch, because it stands between two forward passes. Knows requests and block
tables; nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from minserve.batch import ForwardBatch, GroupTables
from minserve.memory import KVManager
from minserve.request import Request
from minserve.sampling import plan_sampling
from minserve.scheduling import StepPlan


@dataclass(frozen=True)
class BuiltBatch:
    """A batch, and which request each of its results belongs to."""

    batch: ForwardBatch
    """On the CPU."""
    sampled: list[Request]
    """Whose next token each sample row draws."""
    prompt_owners: list[Request]
    """Whose prompt each prompt row scores."""


class BatchBuilder:
    """Builds the batches of one engine."""

    def __init__(self, memory: KVManager, num_groups: int, eos_token_ids: tuple[int, ...]) -> None:
        self._memory = memory
        self._num_groups = num_groups
        self._eos_token_ids = eos_token_ids

    def build(self, plan: StepPlan) -> BuiltBatch:
        """The batch of one step's plan."""
        requests, counts = plan.requests, plan.num_tokens
        tokens: list[int] = []
        sampled: list[Request] = []
        starts: list[int] = []
        sample_rows: list[int] = []
        prompt_rows: list[int] = []
        prompt_targets: list[int] = []
        prompt_owners: list[Request] = []
        num_prompt_logprobs = -1
        for request, count in zip(requests, counts, strict=True):
            start = request.num_computed_tokens
            known = request.token_ids
            stop = start + count
            starts.append(start)
            if request.params.prompt_logprobs is not None:
                first_row = len(tokens) - start
                num_prompt_logprobs = max(num_prompt_logprobs, request.params.prompt_logprobs)
                # From the first position not reported yet: a resumed request reports none twice.
                for position in range(
                    max(start, len(request.prompt_logprobs) - 1),
                    min(stop, request.num_prompt_tokens - 1),
                ):
                    prompt_rows.append(first_row + position)
                    prompt_targets.append(known[position + 1])
                    prompt_owners.append(request)
            if count == 1:
                tokens.append(known[start])
            else:
                tokens.extend(known[start:stop])
            if stop == len(known):
                sampled.append(request)
                sample_rows.append(len(tokens) - 1)

        query_lens = np.array(counts, dtype=np.int64)
        starts_array = np.array(starts, dtype=np.int64)
        kv_lens = starts_array + query_lens
        query_starts = np.zeros(len(counts) + 1, dtype=np.int64)
        np.cumsum(query_lens, out=query_starts[1:])
        block_size = self._memory.block_size
        rows = self._memory.rows_of(requests)
        tables = self._memory.tables[rows, : -(-int(kv_lens.max()) // block_size)]
        if len(tokens) == len(requests):
            positions, owners = starts_array, np.arange(len(requests))
        else:
            owners = np.repeat(np.arange(len(requests)), query_lens)
            positions = np.arange(len(tokens)) + (starts_array - query_starts[:-1])[owners]
        pages, offsets = np.divmod(positions, block_size)
        slots = tables[owners, pages] * np.int64(block_size) + offsets
        group = GroupTables(torch.from_numpy(slots), torch.from_numpy(tables))
        batch = ForwardBatch(
            token_ids=torch.tensor(tokens, dtype=torch.int64),
            positions=torch.from_numpy(positions),
            query_starts=torch.from_numpy(query_starts.astype(np.int32)),
            kv_lens=torch.from_numpy(kv_lens.astype(np.int32)),
            # Every cache is kept for the whole sequence, so all groups share one page numbering.
            groups=(group,) * self._num_groups,
            sample_rows=torch.tensor(sample_rows, dtype=torch.int64),
            sampling=plan_sampling(sampled, eos_token_ids=self._eos_token_ids),
            prompt_rows=torch.tensor(prompt_rows, dtype=torch.int64),
            prompt_targets=torch.tensor(prompt_targets, dtype=torch.int64),
            num_prompt_logprobs=num_prompt_logprobs,
            query_lens=tuple(counts),
            context_lens=tuple(kv_lens.tolist()),
        )
        return BuiltBatch(batch, sampled, prompt_owners)
