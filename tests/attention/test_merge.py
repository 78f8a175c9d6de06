"""Partial attention results join exactly."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.attention.merge import merge_partials


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.einsum("rhd,thd->rht", q, k)
    return torch.einsum("rht,thd->rhd", scores.softmax(-1), v), scores.logsumexp(-1)


@given(split=st.integers(0, 40), seed=st.integers(0, 1000), size=st.sampled_from([1.0, 30.0]))
@settings(max_examples=40)
def test_two_parts_are_the_whole(split: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, 4, 8, generator=generator, dtype=torch.float64) for n in (3, 40, 40))
    q = q * size
    whole, whole_lse = attend(q, k, v)
    # An empty part's output is 0 / 0.
    out, lse = merge_partials(*attend(q, k[:split], v[:split]), *attend(q, k[split:], v[split:]))
    assert (out - whole).abs().max() < 1e-13
    assert (lse - whole_lse).abs().max() < 1e-12


def test_an_empty_part_may_hold_anything() -> None:
    out, lse = torch.randn(2, 1, 4), torch.randn(2, 1)
    nothing, empty = torch.full((2, 1, 4), math.nan), torch.full((2, 1), -math.inf)
    for parts in ((out, lse, nothing, empty), (nothing, empty, out, lse)):
        merged, merged_lse = merge_partials(*parts)
        assert torch.equal(merged, out) and torch.equal(merged_lse, lse)


def test_two_empty_parts_stay_empty() -> None:
    nothing, empty = torch.full((1, 1, 4), math.nan), torch.full((1, 1), -math.inf)
    out, lse = merge_partials(nothing, empty, nothing, empty)
    assert torch.equal(out, torch.zeros(1, 1, 4)) and torch.equal(lse, empty)
