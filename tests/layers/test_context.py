"""The context of a forward pass: whose rows are whose, and counters of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.ragged import PagedSequences

from minserve.batch import ForwardBatch
from minserve.execution.graphs import GraphKey, StaticInputs
from minserve.execution.padding import pad
from minserve.layers import ForwardContext
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.spec import LayerSpec, ModelSpec

LAYER = LayerSpec(AttentionSpec(2, 1, 4), FeedForwardSpec(8))
SPEC = ModelSpec("made", 97, 8, (LAYER,), 1e-5, 64, tie_embeddings=True)
PLAN: Any = None


def batch_of(counts: list[int]) -> ForwardBatch:
    return PagedSequences(SPEC, [[1] * n for n in counts], 64).batch(counts)


COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@given(COUNTS)
def test_every_row_belongs_to_the_request_that_brought_it(counts: list[int]) -> None:
    owners = ForwardContext(batch_of(counts), PLAN).owners
    assert owners.dtype == torch.int64
    assert owners.tolist() == [owner for owner, n in enumerate(counts) for _ in range(n)]


@pytest.mark.parametrize("kind", ["longest", "batch", "power_of_two", "ladder"])
@given(counts=COUNTS)
def test_padding_belongs_to_requests_after_the_real_ones(kind: str, counts: list[int]) -> None:
    if kind == "ladder":
        counts = [1] * len(counts)
    real = batch_of(counts)
    padded = pad(real, kind, [20], 4, most_rows=8, idle_places=2)
    owners = ForwardContext(padded, PLAN).owners.tolist()
    assert owners == [owner for owner, n in enumerate(padded.query_lens) for _ in range(n)]
    first = real.num_tokens
    assert all(owner < len(counts) for owner in owners[:first])
    assert all(owner >= len(counts) for owner in owners[first:])


def test_owners_of_a_captured_step_are_its_rows() -> None:
    inputs = StaticInputs(8, 1, 4, torch.device("cpu"))
    context = ForwardContext(inputs.batch(GraphKey(5, 16)), PLAN)
    assert context.owners.tolist() == [0, 1, 2, 3, 4]


def test_owners_are_made_once_and_counters_are_of_one_pass() -> None:
    batch = batch_of([3, 1])
    one, other = ForwardContext(batch, PLAN), ForwardContext(batch, PLAN)
    assert one.owners is one.owners
    one.counters.touched[0, "up"] = torch.tensor(2)
    assert not other.counters.touched
    assert one.positions is batch.positions and one.query_starts is batch.query_starts
