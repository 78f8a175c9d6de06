"""Log probabilities under the model's own distribution: of given tokens, and of the likeliest.

Taken from the logits as they come from the model: no temperature, penalty, bias or filter. The
same functions serve drawn tokens and the tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minserve.request import TokenLogprobs

_BLOCK = 1 << 20  # logits per block, so that a long prompt's rows need no second copy of its logits


@dataclass(frozen=True)
class Logprobs:
    """Log probabilities at `num_rows` positions; float32, or float64 from float64 logits."""

    logprobs: Tensor
    """`[num_rows]`: of the token that stands there."""
    ranks: Tensor
    """int64 `[num_rows]`: 1 for the likeliest token; equals share the better rank."""
    top_token_ids: Tensor
    """int64 `[num_rows, num_top]`, likeliest first."""
    top_logprobs: Tensor
    """`[num_rows, num_top]`."""


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> Logprobs:
    """Of `token_ids` int64 `[n]` under `logits` `[n, vocab]`, with `num_top` alternatives."""
    with torch.inference_mode():
        size = max(1, _BLOCK // max(1, logits.shape[1]))
        parts = [
            _block(logits[start : start + size], token_ids[start : start + size], num_top)
            for start in range(0, max(1, len(logits)), size)
        ]
        return Logprobs(*(torch.cat(each) for each in zip(*parts, strict=True)))


def prompt_logprobs(logits: Tensor, targets: Tensor, num: int) -> Logprobs:
    """Of the prompt token that follows each row: `[num_rows, vocab]`, int64 `[num_rows]`.

    `num`: top alternatives per row, as in `ForwardBatch.num_prompt_logprobs`.
    """
    return token_logprobs(logits, targets, num)


def to_token_logprobs(
    logprobs: Logprobs, token_ids: Sequence[int], nums: Sequence[int]
) -> list[TokenLogprobs]:
    """On the host, one record per row: `token_ids[i]` with its `nums[i]` likeliest alternatives.

    Alternatives of equal probability are listed by id.
    """
    values, ranks = logprobs.logprobs.tolist(), logprobs.ranks.tolist()
    top_ids, top_values = logprobs.top_token_ids.tolist(), logprobs.top_logprobs.tolist()
    records = []
    for row, (token, num) in enumerate(zip(token_ids, nums, strict=True)):
        top = sorted(zip(top_ids[row], top_values[row], strict=True), key=lambda t: (-t[1], t[0]))
        records.append(TokenLogprobs(token, values[row], ranks[row], tuple(top[:num])))
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
    top = logits.topk(min(max(num_top, 0), logits.shape[1]), dim=-1)
    return (own - normaliser)[:, 0], ranks, top.indices, top.values - normaliser
