"""Top-k, top-p and min-p as one threshold per row.

Each filter keeps the tokens whose score reaches some value, so together they keep those that reach
the largest of the three. Tokens of equal score stay or go together: the kept set depends on the
scores alone, never on how a sort orders equals (a top-k of 5 can keep 6 tokens if two tie for the
fifth place, as in transformers).

The order is that of transformers: temperature; top-k; top-p, on the distribution that top-k
leaves; min-p, relative to the likeliest token (a ratio, which the filters before it do not change).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Filters:
    """The filters of some rows: float64 `[n]` each, with the values that switch them off."""

    top_k: Tensor
    """Whole numbers; 0 is off."""
    top_p: Tensor
    """1 is off."""
    min_p: Tensor
    """0 is off."""

    def __getitem__(self, rows: Tensor) -> Filters:
        return Filters(self.top_k[rows], self.top_p[rows], self.min_p[rows])


def thresholds(
    values: Tensor, total: Tensor | None, filters: Filters, complete: bool
) -> tuple[Tensor, Tensor]:
    """The smallest score that each row keeps, judged from its largest scores.

    `values`: `[n, m]` descending, the m largest scores of each row, shifted so that the row's
    maximum is 0; `total`: float64 `[n]`, sum of exp(score) over each whole row, None when no row
    uses top-p without top-k. `complete`: the row has no further scores.

    Returns the threshold `[n]`, and bool `[n]`: whether m scores were enough to tell, and hold
    every kept token.
    """
    top_k = threshold_top_k(values, filters.top_k)
    top_p, enough = threshold_top_p(values, total, top_k, filters)
    # Compared with scores of this precision, so rounded to it once.
    min_p = filters.min_p.log().to(values.dtype)
    threshold = torch.maximum(torch.maximum(top_k, top_p), min_p)
    if complete:
        return threshold, torch.ones_like(enough)
    return threshold, enough & (threshold > values[:, -1])


def threshold_top_k(values: Tensor, top_k: Tensor) -> Tensor:
    """The k-th largest score per row, -inf where top-k is off: `[n, m]`, `[n]` -> `[n]`."""
    place = (top_k.long() - 1).clamp(min=0, max=values.shape[1] - 1)
    kth = values.gather(1, place[:, None])[:, 0]
    return torch.where(top_k > 0, kth, torch.full_like(kth, float("-inf")))


def threshold_top_p(
    values: Tensor, total: Tensor | None, top_k: Tensor, filters: Filters
) -> tuple[Tensor, Tensor]:
    """The score at which the mass of the likeliest tokens reaches top-p (Holtzman et al.,
    1904.09751), -inf where it is off; and whether that is certain.

    `top_k`: thresholds `[n]`; the mass is relative to what they leave.
    """
    weights = torch.where(values >= top_k[:, None], values.double().exp(), 0.0)
    mass = weights.cumsum(dim=-1)
    # With top-k everything that is left is in view; whether that is so, the caller checks.
    whole = mass[:, -1]
    if total is not None:
        whole = torch.where(filters.top_k > 0, whole, total)
    needed = filters.top_p * whole
    place = (mass < needed[:, None]).sum(dim=-1).clamp(max=values.shape[1] - 1)
    score = values.gather(1, place[:, None])[:, 0]
    off = filters.top_p >= 1.0
    score = torch.where(off, torch.full_like(score, float("-inf")), score)
    return score, off | (mass[:, -1] >= needed)
