"""Logits to tokens: the stages of sampling in their order, each where its cost is least.

For each row: biases and bans, penalties, temperature, top-k, top-p, min-p, one draw; temperature 0
takes the likeliest token instead. Log probabilities are reported from the logits as the model gave
them, before all of this, so that they mean the same for every request.

A row's token depends on its logits, parameters and random number alone, not on its neighbours.
Knows nothing about requests: what to do comes in a SamplingBatch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minserve.batch import SamplingBatch
from minserve.sampling.edits import edit_logits
from minserve.sampling.filters import Filters, thresholds
from minserve.sampling.logprobs import Logprobs, token_logprobs
from minserve.sampling.rows import invert_cdf, largest, padded_width, row_max, search

INVALID_TOKEN = -1
"""Stands for a token where the logits allowed none: a NaN or an infinity among them, or every
token banned. The engine fails that one request; to keep tokens on a device, clamp before use."""

_HEAD = 256  # scores looked at first for top-p: in practice they nearly always hold its mass
_SLACK = 16  # scores beyond top-k, so that ties at its edge stay in view
_MIN_TEMPERATURE = 1e-30  # float32 holds it; colder than this is greedy but for exact ties
_BLOCK = 1 << 18  # logits per block on a CPU: a block's temporaries stay in the caches


@dataclass(frozen=True)
class SampledTokens:
    """What was drawn."""

    token_ids: Tensor
    """int64 `[num_samples]`; INVALID_TOKEN where nothing could be drawn."""
    logprobs: Logprobs | None
    """Of the rows in `SamplingBatch.logprob_rows`, in that order; None if there are none."""


class Sampler:
    """Draws one token per row. Has no state: one may serve several engines."""

    def sample(self, logits: Tensor, batch: SamplingBatch) -> SampledTokens:
        """Draw from `logits` `[num_samples, vocab]`, of any float type and left unchanged.

        The arithmetic is float32 (float64 for float64 logits), running totals are float64. On the
        same device as the batch; where top-k or top-p is in use, a GPU is waited for.
        """
        with torch.inference_mode():
            parts = [
                _sample_block(logits, batch, start, stop)
                for start, stop in _blocks(logits, batch.num_samples)
            ]
            tokens = parts[0] if len(parts) == 1 else torch.cat(parts)
            return SampledTokens(tokens, _logprobs(logits, batch, tokens))

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
    """Row ranges to work on one after the other."""
    size = num
    if logits.device.type == "cpu":
        size = max(1, min(num, _BLOCK // max(1, logits.shape[1])))
    return [(start, min(start + size, num)) for start in range(0, num, size or 1)] or [(0, 0)]


def _sample_block(logits: Tensor, batch: SamplingBatch, start: int, stop: int) -> Tensor:
    """Tokens of rows `start` to `stop`."""
    if stop == start:
        return torch.zeros(0, dtype=torch.int64, device=logits.device)
    if batch.all_greedy and not batch.edits_logits:
        best, tokens = row_max(logits[start:stop])
    else:
        scores, best, tokens = _scores(logits, batch, start, stop)
        if not batch.all_greedy:
            drawn = _draw(scores, batch, start, stop)
            tokens = torch.where(batch.temperature[start:stop] > 0, drawn, tokens)
    return torch.where(best.isfinite(), tokens, INVALID_TOKEN)


def _scores(
    logits: Tensor, batch: SamplingBatch, start: int, stop: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Edited logits less their maximum, over the temperature: `[rows, padded width]`, the padding
    -inf; and each row's maximum and its lowest index. Greedy rows count as temperature 1."""
    vocab = logits.shape[1]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    scores = torch.empty(stop - start, padded_width(vocab), dtype=dtype, device=logits.device)
    scores[:, vocab:] = float("-inf")
    scores[:, :vocab] = logits[start:stop]
    if batch.edits_logits:
        edit_logits(scores, batch, start, stop)
    best, tokens = row_max(scores)
    if not batch.all_greedy:
        temperature = batch.temperature[start:stop].clamp(min=_MIN_TEMPERATURE)
        temperature = torch.where(batch.temperature[start:stop] > 0, temperature, 1.0)
        # The maximum goes first: (x - max) / t cannot overflow to a NaN.
        scores.sub_(best[:, None]).div_(temperature[:, None].to(dtype))
    return scores, best, tokens


def _draw(scores: Tensor, batch: SamplingBatch, start: int, stop: int) -> Tensor:
    """One token per row from its filtered distribution. Overwrites `scores`."""
    uniforms = batch.uniforms[start:stop]
    if not batch.needs_filter:
        return invert_cdf(scores.exp_(), uniforms)
    filters = _filters(batch, start, stop)
    if not (batch.max_top_k or batch.uses_top_p):
        return invert_cdf(_keep(scores, filters.min_p.log()), uniforms)

    values, indices = largest(scores, _head_size(scores, batch))
    threshold, settled = thresholds(
        values, _total(scores, batch), filters, complete=values.shape[1] == scores.shape[1]
    )
    # Everything kept is in view: draw from these few, in token order as from the whole row.
    order = indices.sort(dim=-1)
    weights = _keep(values.gather(1, order.indices), threshold).double()
    totals = weights.cumsum(dim=-1)
    place, _ = search(totals, uniforms * totals[:, -1])
    tokens = order.values.gather(1, place[:, None])[:, 0]

    rest = (~(settled | (batch.temperature[start:stop] == 0))).nonzero()[:, 0]
    if len(rest):
        whole = scores if len(rest) == len(scores) else scores[rest]
        tokens[rest] = _draw_whole(whole, filters[rest], uniforms[rest])
    return tokens


def _draw_whole(scores: Tensor, filters: Filters, uniforms: Tensor) -> Tensor:
    """The same for rows whose kept tokens are many: sort the scores, filter the whole row."""
    return invert_cdf(_keep(scores, _exact_thresholds(scores, filters)), uniforms)


def _exact_thresholds(scores: Tensor, filters: Filters) -> Tensor:
    """Thresholds from every score of each row."""
    threshold, _ = thresholds(sort_descending(scores), None, filters, complete=True)
    return threshold


def _probabilities_block(logits: Tensor, batch: SamplingBatch, start: int, stop: int) -> Tensor:
    """Distributions of rows `start` to `stop`."""
    vocab = logits.shape[1]
    if stop == start:
        return torch.zeros(0, vocab, dtype=torch.float32, device=logits.device)
    scores, best, tokens = _scores(logits, batch, start, stop)
    if batch.needs_filter:
        weights = _keep(scores, _exact_thresholds(scores, _filters(batch, start, stop)))
    else:
        weights = scores.exp_()
    result = weights[:, :vocab] / weights.sum(dim=-1, keepdim=True)
    greedy = batch.temperature[start:stop] == 0
    one_hot = torch.zeros_like(result).scatter_(1, tokens[:, None], 1.0)
    result = torch.where(greedy[:, None], one_hot, result)
    result[~best.isfinite()] = float("nan")
    return result


def _filters(batch: SamplingBatch, start: int, stop: int) -> Filters:
    return Filters(batch.top_k[start:stop], batch.top_p[start:stop], batch.min_p[start:stop])


def _head_size(scores: Tensor, batch: SamplingBatch) -> int:
    """How many of the largest scores to look at first."""
    wanted = max(_HEAD if batch.uses_top_p else 0, batch.max_top_k + _SLACK)
    return min(wanted, scores.shape[1])


def _total(scores: Tensor, batch: SamplingBatch) -> Tensor | None:
    """float64 sum of exp(score) per row, if a row's top-p needs it."""
    if not batch.uses_top_p:
        return None
    return scores.exp().view(len(scores), -1, 64).sum(dim=-1).double().sum(dim=-1)


def _keep(scores: Tensor, threshold: Tensor) -> Tensor:
    """exp(score) where the score reaches its row's threshold, 0 elsewhere. Overwrites `scores`."""
    # A comparison into a float tensor and a product: several times faster than a masked fill.
    kept = torch.ge(scores, threshold[:, None].to(scores.dtype), out=torch.empty_like(scores))
    return scores.exp_().mul_(kept)


def sort_descending(scores: Tensor) -> Tensor:
    """Each row's scores from the largest: `[n, width]`. On a CPU by numpy, whose sort of values
    alone is vectorised (15 times faster here than one that carries indices)."""
    if scores.device.type != "cpu":
        return scores.sort(dim=-1, descending=True).values
    ordered = np.sort(scores.numpy(), axis=-1)
    return torch.from_numpy(ordered[:, ::-1].copy())


def _logprobs(logits: Tensor, batch: SamplingBatch, tokens: Tensor) -> Logprobs | None:
    """Log probabilities of the rows that ask for them."""
    rows = batch.logprob_rows
    if not len(rows):
        return None
    chosen = logits if len(rows) == len(logits) else logits[rows]
    return token_logprobs(chosen, tokens[rows].clamp(min=0), batch.num_logprobs)
