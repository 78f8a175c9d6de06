"""From logits to tokens: the stages of sampling in their order.

For each row: biases and bans, penalties, temperature, top-k, top-p, min-p, one draw; temperature 0
takes the likeliest token instead. Log probabilities are reported from the model's logits before all
of these stages, so that they mean the same for every request.

A row's token depends only on its logits, parameters and random number, not on its neighbours. Knows
nothing about requests: a SamplingBatch says how to draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minserve.batch import SamplingBatch
from minserve.kernels.base import SampleKernel
from minserve.sampling.edits import edit_logits
from minserve.sampling.filters import Filters, keep, row_mass, threshold_min_p, thresholds
from minserve.sampling.logprobs import Logprobs, token_logprobs
from minserve.sampling.rows import (
    CHUNK,
    chunk_maxima,
    invert_cdf,
    largest_values,
    padded_width,
    row_max,
    take_chunks,
)

INVALID_TOKEN = -1
"""The token of a row for which none could be drawn: its logits contain a NaN or an infinity, or
every token is banned. The engine fails that one request. Code that keeps tokens on a device must
clamp them before use."""

_MIN_TEMPERATURE = 1e-30  # float32 holds it; below it, only exact ties differ from greedy
_BLOCK = 1 << 20  # logits per block on a CPU, so that temporaries stay in the caches
_NARROW = 3  # reading chosen chunks first is faster up to this part of a row


@dataclass(frozen=True)
class SampledTokens:
    """The drawn tokens."""

    token_ids: Tensor
    """int64 `[num_samples]`; INVALID_TOKEN if nothing could be drawn."""
    logprobs: Logprobs | None
    """Log probabilities of the rows in `SamplingBatch.logprob_rows`, in that order; None
    if there are none."""


class Sampler:
    """Draws one token per row. Has no state: one sampler may serve several engines.

    `kernel` (`Ops.sample_kernel`) draws from logits of up to 32 bits. It draws the same tokens,
    unless a sum in another order moves a boundary. None: torch operators, which are its oracle.
    """

    def __init__(self, kernel: SampleKernel | None = None) -> None:
        self._kernel = kernel

    def sample(self, logits: Tensor, batch: SamplingBatch) -> SampledTokens:
        """Draw from `logits` `[num_samples, vocab]`, of any float type; they are not changed.

        The arithmetic is float32 (float64 for float64 logits), running totals are float64. Logits
        and batch must be on the same device; without a kernel, top-k and top-p wait for the GPU.
        """
        with torch.inference_mode():
            tokens = self._tokens(logits, batch)
            return SampledTokens(tokens, _logprobs(logits, batch, tokens))

    def _tokens(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        if self._kernel is not None and logits.dtype != torch.float64:
            if batch.edits_logits:
                logits = _edited(logits, batch, 0, batch.num_samples)
            return self._kernel(logits, batch)
        parts = [
            _sample_block(logits, batch, start, stop)
            for start, stop in _blocks(logits, batch.num_samples)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def probabilities(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        """The distributions that `sample` draws from: `[num_samples, vocab]`, float32 or float64.

        Rows sum to 1; greedy rows have a single 1, invalid rows are NaN. For speculative
        verification, tests and pictures.
        """
        with torch.inference_mode():
            parts = [
                _probabilities_block(logits, batch, start, stop)
                for start, stop in _blocks(logits, batch.num_samples)
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts)


def _blocks(logits: Tensor, num: int) -> list[tuple[int, int]]:
    """Row ranges to process one after the other."""
    size = num
    if logits.device.type == "cpu":
        size = max(1, min(num, _BLOCK // max(1, logits.shape[1])))
    return [(start, min(start + size, num)) for start in range(0, num, size or 1)] or [(0, 0)]


def _sample_block(logits: Tensor, batch: SamplingBatch, start: int, stop: int) -> Tensor:
    """Tokens of rows `start` to `stop`; `logits` and `batch` are those of all rows."""
    params = batch.params
    if stop - start < batch.num_samples:
        logits, params = logits[start:stop], params[:, start:stop]
    if batch.edits_logits:
        logits = _edited(logits, batch, start, stop)
    best, tokens = row_max(logits)
    if not batch.all_greedy:
        if batch.num_greedy == 0:
            tokens = _draw(_scores(logits, best, params[0]), batch, params)
        elif logits.device.type == "cpu":
            rows = params[0].nonzero()[:, 0]
            params = params[:, rows]
            tokens[rows] = _draw(_scores(logits[rows], best[rows], params[0]), batch, params)
        else:  # selecting rows would wait for the device: draw for all
            sampled = params[0] > 0
            params = torch.where(sampled, params, 1.0)
            drawn = _draw(_scores(logits, best, params[0]), batch, params)
            tokens = torch.where(sampled, drawn, tokens)
    return tokens.masked_fill_((best - best) != 0, INVALID_TOKEN)  # NaN unless best is finite


def _edited(logits: Tensor, batch: SamplingBatch, start: int, stop: int) -> Tensor:
    """A copy of rows `start` to `stop` with biases, bans and penalties applied."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logits = torch.empty_like(logits, dtype=dtype).copy_(logits)
    edit_logits(logits, batch, start, stop)
    return logits


def _scores(logits: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
    """Logits minus their row's maximum, divided by the temperature: `[n, padded width]`,
    padded with -inf.

    `best`: the maxima `[n]`; `temperature`: float64 `[n]`, positive.
    """
    num, vocab = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scores = torch.empty(num, padded_width(vocab), dtype=dtype, device=logits.device)
    if scores.shape[1] > vocab:
        scores[:, vocab:] = float("-inf")
    # Subtract the maximum first: then (x - max) / t is never inf - inf, however small t is.
    torch.sub(logits.to(dtype), best.to(dtype)[:, None], out=scores[:, :vocab])
    coldness = temperature.clamp(min=_MIN_TEMPERATURE).reciprocal_().to(dtype)
    return scores.mul_(coldness[:, None])


def _draw(scores: Tensor, batch: SamplingBatch, params: Tensor) -> Tensor:
    """One token per row from its filtered distribution: `[n, width]`, `[8, n]` -> int64 `[n]`.

    Overwrites `scores`.
    """
    uniforms = params[7]
    if not batch.needs_filter:
        return invert_cdf(scores.exp_(), uniforms)
    filters = Filters.of(batch, params)
    if not 0 < _NARROW * filters.num_head * CHUNK <= scores.shape[1]:
        return invert_cdf(_filtered(scores, filters), uniforms)

    # Read only the m chunks with the largest maxima, which nearly always hold all tokens that the
    # filters keep: nothing outside exceeds the m-th largest maximum, or the m-th largest score.
    chunks = chunk_maxima(scores).topk(filters.num_head, dim=-1, sorted=False).indices
    chunks = chunks.sort(dim=-1).values  # in token order, like a draw from the whole row
    part = take_chunks(scores, chunks)
    values = largest_values(part, filters.num_head)
    mass = row_mass(scores.exp()) if filters.needs_mass else None
    threshold, known = thresholds(values, filters, mass)
    settled = threshold > values[:, -1]
    settled = settled if known is None else settled & known
    index = invert_cdf(keep(part, part.exp(), threshold), uniforms)[:, None]
    tokens = chunks.gather(1, index // CHUNK).mul_(CHUNK).add_(index % CHUNK)[:, 0]
    if not bool(settled.all()):
        rows = (~settled).nonzero()[:, 0]
        whole, threshold = scores[rows], threshold[rows]
        if known is not None:
            _sort_for_thresholds(threshold, known[rows], whole, filters[rows])
        tokens[rows] = invert_cdf(keep(whole, whole.exp(), threshold), uniforms[rows])
    return tokens


def _filtered(scores: Tensor, filters: Filters) -> Tensor:
    """exp(score) for tokens that the filters keep, 0 for the others: `[n, width]`.
    Overwrites `scores`."""
    weights = scores.exp()
    if not filters.num_head:  # min-p alone needs no other score
        assert filters.min_p is not None
        return keep(scores, weights, threshold_min_p(filters.min_p, scores.dtype))
    head = min(filters.num_head, scores.shape[1])
    complete = head == scores.shape[1]
    mass = row_mass(weights) if filters.needs_mass else None
    threshold, known = thresholds(largest_values(scores, head), filters, mass, complete)
    if known is not None:
        _sort_for_thresholds(threshold, known, scores, filters)
    return keep(scores, weights, threshold)


def _sort_for_thresholds(
    threshold: Tensor, known: Tensor, scores: Tensor, filters: Filters
) -> None:
    """Correct, in place, the thresholds of rows for which the largest scores were too few."""
    if not bool(known.all()):
        rows = (~known).nonzero()[:, 0]
        values = largest_values(scores[rows], scores.shape[1])
        threshold[rows], _ = thresholds(values, filters[rows], complete=True)


def _probabilities_block(logits: Tensor, batch: SamplingBatch, start: int, stop: int) -> Tensor:
    """Distributions of rows `start` to `stop`; `logits` and `batch` are those of all rows."""
    vocab = logits.shape[1]
    logits = logits[start:stop]
    if batch.edits_logits:
        logits = _edited(logits, batch, start, stop)
    best, tokens = row_max(logits)
    sampled = batch.temperature[start:stop] > 0
    params = torch.where(sampled, batch.params[:, start:stop], 1.0)
    scores = _scores(logits, best, params[0])
    weights = _filtered(scores, Filters.of(batch, params)) if batch.needs_filter else scores.exp_()
    result = weights[:, :vocab] / weights.sum(dim=-1, keepdim=True)
    one_hot = torch.zeros_like(result).scatter_(1, tokens[:, None], 1.0)
    result = torch.where(sampled[:, None], result, one_hot)
    return result.masked_fill_(~best.isfinite()[:, None], float("nan"))


def _logprobs(logits: Tensor, batch: SamplingBatch, tokens: Tensor) -> Logprobs | None:
    """Log probabilities of the rows that ask for them."""
    rows = batch.logprob_rows
    if not len(rows):
        return None
    chosen = logits if len(rows) == len(logits) else logits[rows]
    return token_logprobs(chosen, tokens[rows].clamp(min=0), batch.num_logprobs)
