"""The ragged batch of one forward pass: tensors and ints only, picklable.

Everything the model, the attention backend and the sampler need travels in it, so there is no
global state and a batch can be sent to another process. Knows nothing about requests.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

_Batch = TypeVar("_Batch", bound=Any)


@dataclass(frozen=True)
class GroupTables:
    """Where the rows of a batch live in one cache group's pool.

    A slot is `block * block_size + offset`; positions are never derived from slots.
    """

    slots: Tensor
    """int64 `[num_tokens]`: where each row's key and value are stored."""
    block_tables: Tensor
    """int32 `[num_requests, max_blocks]`: pages of each request in order; padding is 0."""


@dataclass(frozen=True)
class SamplingBatch:
    """What the sampler needs for each of the `num_samples` rows whose next token is drawn.

    Sparse parts are ragged triples `(row, token, value)` so that a batch in which nobody uses a
    penalty or a bias carries empty tensors and pays nothing.
    """

    temperature: Tensor
    """float32 `[num_samples]`; 0 means greedy."""
    top_k: Tensor
    """int64 `[num_samples]`; 0 keeps the whole vocabulary."""
    top_p: Tensor
    """float32 `[num_samples]`; 1 keeps everything (nucleus sampling)."""
    min_p: Tensor
    """float32 `[num_samples]`; 0 keeps everything."""
    repetition_penalty: Tensor
    """float32 `[num_samples]`; 1 is off."""
    presence_penalty: Tensor
    """float32 `[num_samples]`; 0 is off."""
    frequency_penalty: Tensor
    """float32 `[num_samples]`; 0 is off."""
    seeds: Tensor
    """int64 `[num_samples]`: the request's seed."""
    sample_indices: Tensor
    """int64 `[num_samples]`: which of a request's n samples."""
    positions: Tensor
    """int64 `[num_samples]`: position of the token being drawn."""
    history_rows: Tensor
    """int64 `[num_history]`: sample row each history token belongs to (penalised rows only)."""
    history_tokens: Tensor
    """int64 `[num_history]`: tokens seen so far."""
    history_is_output: Tensor
    """bool `[num_history]`: generated (True) or from the prompt (False). Presence and frequency
    count generated tokens only; repetition counts both."""
    bias_rows: Tensor
    """int64 `[num_biases]`."""
    bias_tokens: Tensor
    """int64 `[num_biases]`."""
    bias_values: Tensor
    """float32 `[num_biases]`: added to the logit; -inf bans the token."""
    num_logprobs: int
    """Top alternatives to report per row: -1 none at all, 0 the drawn token's own logprob."""
    all_greedy: bool
    """True when every row has temperature 0."""
    needs_filter: bool
    """True when a sampled row uses top-k, top-p or min-p."""

    @property
    def num_samples(self) -> int:
        """Rows to draw."""
        return self.temperature.shape[0]


@dataclass(frozen=True)
class ForwardBatch:
    """One forward pass over `num_tokens` rows of `num_requests` requests, prefill and decode mixed.

    Rows of a request are adjacent: request r owns rows `query_starts[r]` to `query_starts[r + 1]`.
    """

    token_ids: Tensor
    """int64 `[num_tokens]`."""
    positions: Tensor
    """int64 `[num_tokens]`."""
    query_starts: Tensor
    """int32 `[num_requests + 1]`."""
    kv_lens: Tensor
    """int32 `[num_requests]`: tokens each request's last row attends to, itself included."""
    groups: tuple[GroupTables, ...]
    """One per cache group, in the order of `ModelSpec.cache_groups()`."""
    sample_rows: Tensor
    """int64 `[num_samples]`: rows whose logits the sampler reads."""
    sampling: SamplingBatch
    prompt_rows: Tensor
    """int64 `[num_prompt_rows]`: rows whose prompt logprobs were asked for."""
    prompt_targets: Tensor
    """int64 `[num_prompt_rows]`: the prompt token that follows each of those rows."""
    num_prompt_logprobs: int
    """Top alternatives to report per prompt row: -1 none."""
    query_lens: tuple[int, ...]
    """Rows of each request, on the host, so that planning needs no device round trip."""
    context_lens: tuple[int, ...]
    """`kv_lens` on the host."""

    @property
    def num_tokens(self) -> int:
        """Rows in this pass."""
        return self.token_ids.shape[0]

    @property
    def num_requests(self) -> int:
        """Requests in this pass."""
        return len(self.query_lens)

    @property
    def device(self) -> torch.device:
        """Where the batch's tensors live."""
        return self.token_ids.device


def to_device(batch: _Batch, device: torch.device) -> _Batch:
    """The same batch (or part of one) with every tensor on `device`."""
    moved: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, Tensor):
            moved[item.name] = value.to(device, non_blocking=True)
        elif is_dataclass(value) and not isinstance(value, type):
            moved[item.name] = to_device(value, device)
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            moved[item.name] = tuple(to_device(part, device) for part in value)
    result: _Batch = replace(batch, **moved)
    return result
