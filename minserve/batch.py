"""The ragged batch of one forward pass: tensors and ints only, picklable.

Everything that the model, the attention backend and the sampler need is in it, so there is no
global state and a batch can be sent to another process. Knows nothing about requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

PLAIN = -1
"""The mask of a row that sees every row of its request before it: all bits are set, so it needs no
special case."""

_Batch = TypeVar("_Batch", bound=Any)


@dataclass(frozen=True)
class GroupTables:
    """Where the rows of a batch are stored in the pool of one cache group.

    A slot is `block * block_size + offset`; positions are never derived from slots.
    """

    slots: Tensor
    """int64 `[num_tokens]`: where each row's key and value are stored."""
    block_tables: Tensor
    """int32 `[num_requests, max_blocks]`: pages of each request in order; padding is 0."""


@dataclass(frozen=True)
class SamplingBatch:
    """What the sampler needs for each of the `num_samples` rows whose next token is drawn.

    Per-row numbers are packed into one tensor, so that one copy moves them to a device. Penalties
    and biases are ragged lists of `(row, token)`: if no row of a batch uses them, the tensors are
    empty and cost nothing. The integers beside the tensors tell the host which parts are used, so
    that it need not wait for the device to find out.
    """

    params: Tensor
    """float64 `[8, num_samples]`; the properties below name its rows."""
    history: Tensor
    """int64 `[3, num_history]`: sample row, token, and how often that token was generated (0: it
    occurs only in the prompt). Each (row, token) occurs once; rows ascend; penalised rows only."""
    bias_tokens: Tensor
    """int64 `[2, num_biases]`: sample row and token. Each pair occurs once; rows ascend."""
    bias_values: Tensor
    """float64 `[num_biases]`: added to the logit; -inf bans the token."""
    logprob_rows: Tensor
    """int64 `[num_logprob_rows]`: rows whose log probabilities are reported, ascending."""
    num_logprobs: int
    """Number of top alternatives to report for those rows; 0 means only the drawn token's own."""
    num_greedy: int
    """Rows with temperature 0."""
    max_top_k: int
    """The largest top-k of a sampled row; 0 if no row uses it."""
    uses_top_p: bool
    """True if a sampled row uses top-p."""
    needs_mass: bool
    """True if a sampled row uses top-p without top-k, so that its whole distribution is summed."""
    uses_min_p: bool
    """True if a sampled row uses min-p."""
    logprob_counts: tuple[int, ...] = ()
    """Top alternatives that each of `logprob_rows` asked for, on the host."""
    mask_rows: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """int64 `[num_masked]`: rows that may draw only some tokens, ascending; each occurs once."""
    mask_bits: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.uint8))
    """uint8 `[num_masked, num_bytes]`: token t of such a row is allowed if bit `t % 8` of
    byte `t // 8` is 1; tokens beyond the last byte are not allowed. Bans of single tokens are
    among the biases."""

    @property
    def num_samples(self) -> int:
        """Rows to draw."""
        return self.params.shape[1]

    @property
    def temperature(self) -> Tensor:
        """`[num_samples]`; 0 means greedy."""
        return self.params[0]

    @property
    def top_k(self) -> Tensor:
        """`[num_samples]`, whole numbers; 0 keeps the whole vocabulary."""
        return self.params[1]

    @property
    def top_p(self) -> Tensor:
        """`[num_samples]`; 1 keeps everything (nucleus sampling)."""
        return self.params[2]

    @property
    def min_p(self) -> Tensor:
        """`[num_samples]`; 0 keeps everything."""
        return self.params[3]

    @property
    def repetition_penalty(self) -> Tensor:
        """`[num_samples]`; 1 is off."""
        return self.params[4]

    @property
    def presence_penalty(self) -> Tensor:
        """`[num_samples]`; 0 is off."""
        return self.params[5]

    @property
    def frequency_penalty(self) -> Tensor:
        """`[num_samples]`; 0 is off."""
        return self.params[6]

    @property
    def uniforms(self) -> Tensor:
        """`[num_samples]` in [0, 1): the random number of each row, a pure function of the
        request's seed, the sample's index and the position of the token being drawn."""
        return self.params[7]

    @property
    def all_greedy(self) -> bool:
        """True if every row has temperature 0."""
        return self.num_greedy == self.num_samples

    @property
    def needs_filter(self) -> bool:
        """True if a sampled row uses top-k, top-p or min-p."""
        return self.max_top_k > 0 or self.uses_top_p or self.uses_min_p

    @property
    def edits_logits(self) -> bool:
        """True if a row has a bias, a ban, a mask or a penalty."""
        return self.history.shape[1] > 0 or self.bias_tokens.shape[1] > 0 or len(self.mask_rows) > 0


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
    """The most alternatives that a prompt row asks for; -1 if no prompt row is scored."""
    query_lens: tuple[int, ...]
    """Rows of each request, on the host, so that planning needs no device round trip."""
    context_lens: tuple[int, ...]
    """`kv_lens` on the host."""
    tree: Tensor | None = None
    """int64 `[num_tokens]`: which of its request's other rows each row sees, if those are a
    speculative tree (`kernels.tree`), else PLAIN; None: every row sees all rows before it. Rows of
    a tree have slots in the order of rows, and positions by their depth."""
    pending: Tensor | None = None
    """int64 `[2, num_pending]`: rows whose token is drawn by the batch submitted before this one,
    and the token's index among that batch's `num_samples`; `token_ids` holds a placeholder in these
    rows. None: every token is known on the host."""
    prompt_counts: tuple[int, ...] = ()
    """Number of top alternatives that each of `prompt_rows` asks for, on the host."""
    needs_hidden: bool = False
    """True if the residual stream of `sample_rows` after the last layer is part of the result."""

    @property
    def num_samples(self) -> int:
        """Rows whose next token is drawn."""
        return self.sample_rows.shape[0]

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
        """The device of the batch's tensors."""
        return self.token_ids.device


def map_tensors(batch: _Batch, change: Callable[[Tensor], Tensor]) -> _Batch:
    """The same batch (or another data class of tensors) with every tensor changed."""
    changed: dict[str, Any] = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, Tensor):
            changed[item.name] = change(value)
        elif is_dataclass(value) and not isinstance(value, type):
            changed[item.name] = map_tensors(value, change)
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            changed[item.name] = tuple(map_tensors(part, change) for part in value)
    result: _Batch = replace(batch, **changed)
    return result


def to_device(batch: _Batch, device: torch.device) -> _Batch:
    """The same batch (or part of one) with every tensor on `device`, one copy each. A step's whole
    batch uses a `staging.Link` instead."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))
