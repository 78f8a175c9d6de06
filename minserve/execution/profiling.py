"""Measures how much memory the largest batch needs, by running it once.

Used on a GPU, where the page pool gets the memory that is left; on a CPU there is usually enough.
"""

from __future__ import annotations

import numpy as np
import torch

from minserve.attention import PagedAttention
from minserve.batch import ForwardBatch, GroupTables
from minserve.clock import WallClock
from minserve.config import ResolvedConfig
from minserve.execution.padding import pad
from minserve.execution.runner import EagerRunner
from minserve.kernels.base import Ops
from minserve.memory import GroupPlan, KVCache
from minserve.models import Decoder
from minserve.request import Request, SamplingParams
from minserve.sampling import plan_sampling


def largest_batch(config: ResolvedConfig, drafts: bool = False) -> ForwardBatch:
    """The batch with all tokens that the budget allows and all requests that may hold a place.
    `drafts`: a proposer may fill the budget, and a token is drawn from each row."""
    tokens, requests = config.max_num_batched_tokens, config.config.scheduling.max_num_seqs
    share, extra = divmod(tokens, requests)
    lens = [min(share + (index < extra), config.max_model_len) for index in range(requests)]
    kernels, block_size = config.config.kernels, config.config.memory.block_size
    if kernels.padding in ("longest", "batch"):
        # One long prompt among single tokens: every request is padded to its number of rows.
        lens = [min(tokens - requests + 1, config.max_model_len)] + [1] * (requests - 1)
    starts = np.concatenate([[0], np.cumsum(lens)])
    positions = np.concatenate([np.arange(length) for length in lens])
    blocks = -(-max(lens) // block_size)
    group = GroupTables(
        # Every request writes to the same few pages: only shapes matter here.
        slots=torch.from_numpy(positions.copy()),
        block_tables=torch.arange(blocks, dtype=torch.int32).repeat(requests, 1),
    )
    empty = torch.zeros(0, dtype=torch.int64)
    sample_rows = torch.arange(len(positions)) if drafts else torch.from_numpy(starts[1:] - 1)
    batch = ForwardBatch(
        token_ids=torch.zeros(len(positions), dtype=torch.int64),
        positions=torch.from_numpy(positions),
        query_starts=torch.from_numpy(starts.astype(np.int32)),
        kv_lens=torch.tensor(lens, dtype=torch.int32),
        groups=(group,) * len(config.model.cache_groups()),
        sample_rows=sample_rows,
        sampling=plan_sampling(_sampled_requests(len(sample_rows))),
        prompt_rows=empty,
        prompt_targets=empty,
        num_prompt_logprobs=-1,
        query_lens=tuple(lens),
        context_lens=tuple(lens),
    )
    scratch_blocks = [0] * len(batch.groups)
    return pad(batch, kernels.padding, scratch_blocks, block_size)


def _sampled_requests(count: int) -> list[Request]:
    # Top-p sorts the whole vocabulary, which needs the most memory of all samplers.
    params = SamplingParams(top_p=0.5)
    return [Request(str(index), [0], params, arrival_s=0.0, seed=0) for index in range(count)]


def activation_peak_bytes(
    config: ResolvedConfig, decoder: Decoder, ops: Ops, drafts: bool = False
) -> int:
    """Peak bytes of activations on a CUDA device, beyond what was allocated before. `drafts` as in
    `largest_batch`."""
    batch = largest_batch(config, drafts)
    blocks = batch.groups[0].block_tables.shape[1]
    plans = [GroupPlan(group, blocks) for group in config.model.cache_groups()]
    cache = KVCache(plans, config.config.memory.block_size, config.dtype, config.device)
    attention = PagedAttention(config.model, cache.layers_of(config.model), ops)
    runner = EagerRunner(
        decoder, attention, config.device, WallClock(), config.config.kernels.logits_chunk
    )
    torch.cuda.synchronize(config.device)
    before = torch.cuda.memory_allocated(config.device)
    torch.cuda.reset_peak_memory_stats(config.device)
    runner.collect(runner.submit(batch))
    torch.cuda.synchronize(config.device)
    peak = torch.cuda.max_memory_allocated(config.device) - before
    del cache, attention, runner
    torch.cuda.empty_cache()
    return peak
