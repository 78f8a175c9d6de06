"""Log probabilities under the model's own distribution: of given tokens, and of the likeliest.

Taken from the model's logits before any temperature, penalty, bias or filter. The same functions
serve drawn tokens and the tokens of a prompt.

Alternatives are ordered by logit, and equal logits (frequent in bfloat16) by token id: a row's
first k are the same whatever number other rows ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minserve.request import TokenLogprobs

_LOW = 0x7FFFFFFF
_BLOCK = 1 << 20  # logits per block, so that a long prompt's rows need no second copy of its logits


@dataclass(frozen=True)
class Logprobs:
    """Log probabilities at `num_rows` positions; float32, or float64 from float64 logits."""

    logprobs: Tensor
    """`[num_rows]`: of the token at that position."""
    ranks: Tensor
    """int64 `[num_rows]`: 1 for the likeliest token; equal tokens share the better rank."""
    top_token_ids: Tensor
    """int64 `[num_rows, num_top]`, likeliest first; between equal logits, the smaller id first."""
    top_logprobs: Tensor
    """`[num_rows, num_top]`."""


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> Logprobs:
    """Log probabilities of `token_ids` int64 `[n]` under `logits` `[n, vocab]`, with
    `num_top` alternatives."""
    with torch.inference_mode():
        size = max(1, _BLOCK // max(1, logits.shape[1]))
        parts = [
            _block(logits[start : start + size], token_ids[start : start + size], num_top)
            for start in range(0, max(1, len(logits)), size)
        ]
        return Logprobs(*(torch.cat(each) for each in zip(*parts, strict=True)))


def prompt_logprobs(logits: Tensor, targets: Tensor, num: int) -> Logprobs:
    """Log probabilities of the prompt token that follows each row: `[num_rows, vocab]`,
    int64 `[num_rows]`.

    `num`: top alternatives per row, as in `ForwardBatch.num_prompt_logprobs`.
    """
    return token_logprobs(logits, targets, num)


def to_token_logprobs(
    logprobs: Logprobs, token_ids: Sequence[int], nums: Sequence[int]
) -> list[TokenLogprobs]:
    """On the host, one record per row: `token_ids[i]` with its `nums[i]` likeliest alternatives."""
    values, ranks = logprobs.logprobs.tolist(), logprobs.ranks.tolist()
    records = []
    for row, (token, num) in enumerate(zip(token_ids, nums, strict=True)):
        # Only the alternatives that the row asked for become Python objects: another row may
        # ask for all tokens.
        ids = logprobs.top_token_ids[row, :num].tolist()
        top = zip(ids, logprobs.top_logprobs[row, :num].tolist(), strict=True)
        records.append(TokenLogprobs(token, values[row], ranks[row], tuple(top)))
    return records


def _block(
    logits: Tensor, token_ids: Tensor, num_top: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of Logprobs for a few rows."""
    if logits.dtype != torch.float64:
        logits = logits.float()
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    own = logits.gather(1, token_ids[:, None])
    ranks = (logits > own).sum(dim=-1) + 1
    num_top = min(max(num_top, 0), logits.shape[1])
    if 2 * num_top > logits.shape[1] or (num_top and logits.dtype == torch.float64):
        top_ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :num_top]
    elif not num_top:
        top_ids = token_ids.new_zeros(len(logits), 0)
    elif logits.device.type == "cpu":
        top_ids = _largest_on_cpu(logits, num_top)
    else:
        top_ids = _largest_on_device(logits, num_top)
    return (own - normaliser)[:, 0], ranks, top_ids, logits.gather(1, top_ids) - normaliser


def _largest_on_cpu(logits: Tensor, count: int) -> Tensor:
    """Ids of each row's `count` largest logits, equals ordered by id: `[n, vocab]` ->
    int64 `[n, count]`.

    Torch's topk returns equal logits in any order. One more logit is read to detect
    equals at the edge.
    """
    if count < logits.shape[1]:
        values, ids = logits.topk(count + 1, dim=-1)
        if not bool((values[:, 1:] == values[:, :-1]).any()):
            return ids[:, :count]
    return _largest_with_equals(logits, count)


def _largest_with_equals(logits: Tensor, count: int) -> Tensor:
    """The same by selecting values without indices: finds the smallest value that belongs, and
    sorts only logits that reach it."""
    values = logits.numpy()
    edges = np.partition(values, values.shape[1] - count, axis=-1)[:, -count]
    reach = values >= edges[:, None]
    if np.count_nonzero(reach) != reach.shape[0] * count:
        for row in np.flatnonzero(reach.sum(axis=-1) != count):
            _keep_first_equals(reach[row], values[row], edges[row], count)
    ids = np.flatnonzero(reach).reshape(-1, count) % reach.shape[1]
    order = np.argsort(-np.take_along_axis(values, ids, axis=-1), axis=-1, kind="stable")
    return torch.from_numpy(np.take_along_axis(ids, order, axis=-1))


def _keep_first_equals(
    reach: npt.NDArray[np.bool_], values: npt.NDArray[Any], edge: float, count: int
) -> None:
    """Leave `count` tokens in `reach` `[vocab]`, in place: of the tokens that equal the
    edge, the first ones.

    A NaN among the logits reaches no value; its row's token is invalid, so any tokens will do.
    """
    above = values > edge
    reach[:] = above
    reach[np.flatnonzero(values == edge)[: count - np.count_nonzero(above)]] = True
    if np.count_nonzero(reach) != count:
        reach[:] = False
        reach[:count] = True


def _largest_on_device(logits: Tensor, count: int) -> Tensor:
    """The same for float32, without waiting for the device. A 64-bit key holds the order of the
    logit and then the order of the id, so that no two keys are equal."""
    bits = (logits + 0.0).view(torch.int32)  # -0.0 becomes 0.0, because they are equal
    ordered = (bits ^ ((bits >> 31) & _LOW)).to(torch.int64)
    ids = torch.arange(logits.shape[1], device=logits.device)
    keys = (ordered << 32) + (_LOW - ids)
    return _LOW - (keys.topk(count, dim=-1).values & _LOW)
