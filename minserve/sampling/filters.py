"""Top-k, top-p and min-p as one threshold per row.

Each filter keeps the tokens with at least a certain score, so together they keep the tokens that
reach the largest of the three scores. Tokens of equal score are kept or dropped together: the kept
set depends only on the scores, never on how a sort orders equals (a top-k of 5 can keep 6 tokens if
two are tied in fifth place, as in transformers).

The order is that of transformers: temperature; top-k; top-p, on the distribution after top-k;
min-p, relative to the likeliest token (a ratio, which the filters before it do not change).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minserve.batch import SamplingBatch
from minserve.sampling.rows import in_chunks

_HEAD = 256  # scores read first for top-p: they nearly always hold its mass
_SLACK = 16  # extra scores after the top-k, so that ties at its edge are seen


@dataclass(frozen=True)
class Filters:
    """The filters of some rows, float64 `[n]` each; None if no row uses the filter."""

    top_k: Tensor | None
    """Whole numbers; 0 is off."""
    top_p: Tensor | None
    """1 is off."""
    min_p: Tensor | None
    """0 is off."""
    num_head: int
    """How many of a row's largest scores to read first; 0 if min-p is the only filter."""
    needs_mass: bool
    """True if a row uses top-p without top-k."""

    @staticmethod
    def of(batch: SamplingBatch, params: Tensor) -> Filters:
        """The filters of the rows of a batch whose `params` `[8, n]` are given."""
        _, top_k, top_p, min_p, *_ = params.unbind()
        head = batch.max_top_k + _SLACK if batch.max_top_k else 0
        return Filters(
            top_k=top_k if batch.max_top_k else None,
            top_p=top_p if batch.uses_top_p else None,
            min_p=min_p if batch.uses_min_p else None,
            num_head=max(head, _HEAD if batch.uses_top_p else 0),
            needs_mass=batch.needs_mass,
        )

    def __getitem__(self, rows: Tensor) -> Filters:
        return replace(
            self,
            top_k=None if self.top_k is None else self.top_k[rows],
            top_p=None if self.top_p is None else self.top_p[rows],
            min_p=None if self.min_p is None else self.min_p[rows],
        )


def thresholds(
    values: Tensor, filters: Filters, mass: Tensor | None = None, complete: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The smallest score that each row keeps, computed from its largest scores.

    `values`: `[n, m]` descending, the m largest scores of each row, shifted so that the maximum is
    0, with m at least every top-k; `complete`: they are all its scores. Otherwise `mass`, float64
    `[n]`, is the sum of exp(score) over each whole row; None if no row uses top-p without top-k.

    Returns the thresholds `[n]`, -inf for rows without a filter; and bool `[n]`, False if m scores
    were too few to know the threshold (None: enough for all rows).
    """
    threshold = torch.full_like(values[:, 0], float("-inf"))
    known = None
    if filters.top_k is not None:
        threshold = threshold_top_k(values, filters.top_k)
    if filters.top_p is not None:
        weights = values.exp().double()
        if filters.top_k is not None:
            weights.mul_(values >= threshold[:, None])
        running = weights.cumsum(dim=-1)
        whole = running[:, -1]
        if not complete:
            # With a top-k, all tokens it keeps are among these scores, unless its threshold
            # equals the last one.
            in_view = values[:, -1] < threshold
            whole = whole if mass is None else torch.where(in_view, whole, mass)
            known = in_view | (filters.top_p >= 1.0)
            if mass is not None:
                known |= (running[:, -1] >= filters.top_p * whole) & ~threshold.isfinite()
        threshold = torch.maximum(threshold, threshold_top_p(values, running, filters.top_p, whole))
    if filters.min_p is not None:
        threshold = torch.maximum(threshold, threshold_min_p(filters.min_p, values.dtype))
    return threshold, known


def threshold_top_k(values: Tensor, top_k: Tensor) -> Tensor:
    """The k-th largest score per row, -inf where top-k is off: `[n, m]`, `[n]` -> `[n]`."""
    index = (top_k.long() - 1).clamp_(min=0, max=values.shape[1] - 1)
    kth = values.gather(1, index[:, None])[:, 0]
    return kth.masked_fill_(top_k == 0, float("-inf"))


def threshold_top_p(values: Tensor, running: Tensor, top_p: Tensor, whole: Tensor) -> Tensor:
    """The score at which the mass of the likeliest tokens reaches top-p (Holtzman et al.,
    1904.09751), -inf if it is off: `[n, m]`, float64 `[n, m]`, `[n]`, `[n]` -> `[n]`.

    `running`: the mass of each score and the scores before it; `whole`: the mass of all scores.
    """
    index = torch.searchsorted(running, (top_p * whole)[:, None])
    score = values.gather(1, index.clamp_(max=values.shape[1] - 1))[:, 0]
    return score.masked_fill_(top_p >= 1.0, float("-inf"))


def threshold_min_p(min_p: Tensor, dtype: torch.dtype) -> Tensor:
    """log(min-p): with the likeliest token at 0, the score of a token that is this
    fraction as likely."""
    return min_p.log().to(dtype)


def row_mass(weights: Tensor) -> Tensor:
    """The sum of each row: `[n, width]`, a multiple of CHUNK wide -> float64 `[n]`."""
    return in_chunks(weights).sum(dim=-1).double().sum(dim=-1)


def keep(scores: Tensor, weights: Tensor, threshold: Tensor) -> Tensor:
    """`weights`, set to zero if the score is below its row's threshold: `[n, width]` twice, `[n]`.

    Overwrites both: a comparison into floats and a product are several times faster than a masked
    fill, and another buffer would cost more than either.
    """
    return weights.mul_(scores.ge_(threshold[:, None]))
