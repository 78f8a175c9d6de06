"""Biases, bans, penalties and masks: everything that changes single logits, in place.

The first three are sparse: a gather, some arithmetic on the few logits concerned, a scatter. Each
(row, token) occurs once, so nothing depends on the order of a scatter. A mask is dense: a bit per
token, but only for the rows that have one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minserve.batch import SamplingBatch


def edit_logits(scores: Tensor, batch: SamplingBatch, start: int, stop: int) -> None:
    """Apply the edits of the batch's rows `start` to `stop` to their logits.

    `scores`: float32 or float64 `[stop - start, vocab]`, changed in place. Biases come first, so
    that a penalty sees the biased logit (as in transformers and vLLM); masks come last, so that a
    banned token stays at minus infinity.
    """
    bias = _within(batch.bias_tokens[0], batch, start, stop)
    add_biases(scores, batch.bias_tokens[:, bias], batch.bias_values[bias], start)
    part = _within(batch.history[0], batch, start, stop)
    penalise(scores, batch.history[:, part], batch, start)
    if len(batch.mask_rows):
        masked = _within(batch.mask_rows, batch, start, stop)
        mask_tokens(scores, batch.mask_rows[masked] - start, batch.mask_bits[masked])


def add_biases(scores: Tensor, tokens: Tensor, values: Tensor, start: int = 0) -> None:
    """Add `values` `[n]` to the logits at `tokens` `[2, n]` (row, token)."""
    if tokens.shape[1]:
        scores[tokens[0] - start, tokens[1]] += values.to(scores.dtype)


def penalise(scores: Tensor, history: Tensor, batch: SamplingBatch, start: int = 0) -> None:
    """Make tokens seen before less likely.

    Repetition (CTRL, Keskar et al., 1909.05858): divide a positive logit, multiply a negative one,
    for every token of prompt and output. Then, for generated tokens only (OpenAI): subtract the
    presence penalty once, and the frequency penalty once per occurrence. `history` is `[3, n]` as
    in SamplingBatch.
    """
    if not history.shape[1]:
        return
    rows, tokens, counts = history
    logits = scores[rows - start, tokens]
    repetition = batch.repetition_penalty[rows].to(scores.dtype)
    logits = torch.where(logits > 0, logits / repetition, logits * repetition)
    presence = batch.presence_penalty[rows] * (counts > 0)
    frequency = batch.frequency_penalty[rows] * counts
    scores[rows - start, tokens] = logits - (presence + frequency).to(scores.dtype)


def mask_tokens(scores: Tensor, rows: Tensor, bits: Tensor) -> None:
    """Set all tokens of `rows` `[n]` to minus infinity, except those whose bit is 1 in `bits`,
    uint8 `[n, num_bytes]` as in SamplingBatch."""
    if not len(rows):
        return
    vocab = scores.shape[1]
    bit_numbers = torch.arange(8, dtype=torch.uint8, device=bits.device)
    allowed = (bits[:, :, None] >> bit_numbers).bitwise_and_(1).view(len(rows), -1)[:, :vocab]
    kept = scores[rows]
    kept[:, : allowed.shape[1]].masked_fill_(allowed == 0, float("-inf"))
    kept[:, allowed.shape[1] :] = float("-inf")
    scores[rows] = kept


def _within(rows: Tensor, batch: SamplingBatch, start: int, stop: int) -> slice:
    """The slice of the ascending `rows` from `start` to `stop`."""
    if start == 0 and stop == batch.num_samples:
        return slice(None)
    bounds = torch.searchsorted(rows, torch.tensor([start, stop], device=rows.device)).tolist()
    return slice(*bounds)
