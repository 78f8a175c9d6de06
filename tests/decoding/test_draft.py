"""Drafts: chains and trees of proposed tokens, cut and verified."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minserve.draft import Draft, accepted


@st.composite
def drafts(draw: st.DrawFn, max_tokens: int = 12) -> Draft:
    num = draw(st.integers(0, max_tokens))
    tokens = tuple(draw(st.integers(0, 3)) for _ in range(num))
    parents = tuple(draw(st.integers(-1, index - 1)) for index in range(num))
    return Draft(tokens, draw(st.sampled_from([None, parents])))


def walked(draft: Draft, drawn: Sequence[int]) -> list[int]:
    """`accepted` by its definition: from the root, to the first child with the drawn token."""
    path, last = [], -1
    while True:
        children = [index for index in range(len(draft)) if draft.parent(index) == last]
        found = [index for index in children if draft.token_ids[index] == drawn[last + 1]]
        if not found:
            return path
        last = found[0]
        path.append(last)


@given(draft=drafts(), data=st.data())
def test_accepted_is_the_walk_from_the_root(draft: Draft, data: st.DataObject) -> None:
    drawn = [data.draw(st.integers(-1, 3)) for _ in range(len(draft) + 1)]
    found = accepted(draft, drawn)
    assert found == sorted(found)
    if len(set(zip(draft.token_ids, map(draft.parent, range(len(draft))), strict=True))) == len(
        draft
    ):
        assert found == walked(draft, drawn)  # no two equal siblings
    for index in found:
        assert draft.token_ids[index] == drawn[draft.parent(index) + 1]
    assert found == (draft.branch(found[-1]) if found else [])


def test_of_equal_siblings_the_first_is_taken() -> None:
    draft = Draft((5, 5, 6, 7), (-1, -1, 0, 1))
    assert accepted(draft, [5, 6, 7, 0, 0]) == [0, 2]
    assert accepted(draft, [5, 7, 7, 0, 0]) == [0]


@given(draft=drafts(), depth=st.integers(0, 5), tokens=st.integers(-2, 14))
def test_a_cut_draft_keeps_whole_branches(draft: Draft, depth: int, tokens: int) -> None:
    cut = draft.within(depth, tokens)
    assert len(cut) <= max(0, tokens) and all(each <= depth for each in cut.depths)
    branches = {tuple(draft.token_ids[i] for i in draft.branch(n)) for n in range(len(draft))}
    for index in range(len(cut)):
        assert tuple(cut.token_ids[each] for each in cut.branch(index)) in branches
    if max(draft.depths, default=0) <= depth and tokens >= len(draft):
        assert cut is draft


@given(drafts())
def test_a_depth_is_the_length_of_the_branch(draft: Draft) -> None:
    assert draft.depths == tuple(len(draft.branch(index)) for index in range(len(draft)))


def test_a_chain_is_a_chain_however_it_is_written() -> None:
    assert Draft((1, 2, 3), (-1, 0, 1)) == Draft((1, 2, 3))
    assert Draft((1, 2), (-1, 0)).is_chain and not Draft((1, 2), (-1, -1)).is_chain
    assert Draft(()).is_chain and len(Draft((), ())) == 0


def test_whole_numbers_of_any_kind_become_python_ints() -> None:
    draft = Draft(np.array([3, 4]), torch.tensor([-1, -1]))  # type: ignore[arg-type]
    assert draft == Draft((3, 4), (-1, -1))
    assert {type(each) for each in (*draft.token_ids, *(draft.parents or ()))} == {int}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (((1.0,),), "Draft.token_ids: expected whole numbers"),
        ((("a",),), "Draft.token_ids: expected whole numbers"),
        (((1,), (0.0,)), "Draft.parents: expected whole numbers"),
        (((1, 2), (-1,)), "2 tokens and 1 parents; expected one parent for each"),
        (((1, 2), (-1, 1)), "Draft.parents[1] is 1: expected the index of an earlier token, or -1"),
        (((1,), (-2,)), "Draft.parents[0] is -2: expected"),
        (((1, 2), (1, -1)), "Draft.parents[0] is 1: expected"),
        ((5,), "Draft.token_ids: expected whole numbers"),
        ((None,), "Draft.token_ids: expected whole numbers"),
    ],
)
def test_what_is_no_draft_is_refused(args: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Draft(*args)
