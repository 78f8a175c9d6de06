"""A draft: tokens that a proposer expects a request to generate next.

A draft is a chain, or a tree of several continuations (SpecInfer, Miao et al., arXiv 2305.09781).
One forward pass computes all its tokens and verifies them. Knows nothing about requests and models.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Draft:
    """Proposed tokens, each after its parent: a parent comes before its children."""

    token_ids: tuple[int, ...]
    parents: tuple[int, ...] | None = None
    """For each token, the index of the token before it in `token_ids`; -1 for a token that directly
    continues the request. None: a chain, in which each token continues the one before it."""
    depths: tuple[int, ...] = field(init=False, repr=False)
    """For each token, how many tokens of the draft lead up to it, itself included: from 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "token_ids", _whole("token_ids", self.token_ids))
        num = len(self.token_ids)
        if self.parents is not None:
            parents = _whole("parents", self.parents)
            chain = parents == tuple(range(-1, num - 1))
            object.__setattr__(self, "parents", None if chain else parents)
            if len(parents) != num:
                raise ValueError(
                    f"Draft: {num} tokens and {len(parents)} parents; expected one parent for each "
                    "token, or None for a chain"
                )
        depths: list[int] = []
        for index in range(num):
            parent = self.parent(index)
            if not -1 <= parent < index:
                raise ValueError(
                    f"Draft.parents[{index}] is {parent}: expected the index of an earlier token, "
                    "or -1"
                )
            depths.append(1 if parent < 0 else depths[parent] + 1)
        object.__setattr__(self, "depths", tuple(depths))

    def __len__(self) -> int:
        """Tokens proposed."""
        return len(self.token_ids)

    @property
    def is_chain(self) -> bool:
        """True if each token continues the one before it."""
        return self.parents is None

    def parent(self, index: int) -> int:
        """Index of the token before token `index`; -1 if it directly continues the request."""
        return index - 1 if self.parents is None else self.parents[index]

    def branch(self, index: int) -> list[int]:
        """Indices of the tokens that lead up to token `index`, itself included, in order."""
        found = []
        while index >= 0:
            found.append(index)
            index = self.parent(index)
        return found[::-1]

    def within(self, max_depth: int, max_tokens: int) -> Draft:
        """The part of the draft of at most `max_tokens` tokens, none deeper than `max_depth`."""
        kept = [index for index, depth in enumerate(self.depths) if depth <= max_depth]
        kept = kept[: max(0, max_tokens)]
        if len(kept) == len(self):
            return self
        new_index = {-1: -1} | {old: new for new, old in enumerate(kept)}
        parents = tuple(new_index[self.parent(index)] for index in kept)
        return Draft(tuple(self.token_ids[index] for index in kept), parents)


def _whole(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers of any kind (numpy's, torch's) as Python's. Raises ValueError."""
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError as error:
        raise ValueError(f"Draft.{name}: expected whole numbers ({error})") from None


def accepted(draft: Draft, drawn: Sequence[int]) -> list[int]:
    """The proposed tokens that the model confirms, as indices along one branch, in order.

    `drawn` are the model's own tokens: `drawn[0]` after the request's newest token, `drawn[i + 1]`
    after token i of the draft. A proposed token is confirmed if its parent is, and the model drew
    the same token there. The draws are those of ordinary decoding (a random number belongs to a
    position, see `sampling.random`), so the result is the same text, sampled or greedy.
    """
    found: list[int] = []
    last = -1
    for index, token in enumerate(draft.token_ids):
        if draft.parent(index) == last and drawn[last + 1] == token:
            found.append(index)
            last = index
    return found
