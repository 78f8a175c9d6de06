"""Token ids to the pieces of text they add, one piece per token.

A character split over tokens appears with the token that completes it. Knows nothing about runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from minserve.tokenizer.detokenizer import Detokenizer


class Texts(Protocol):
    """What is needed of a tokenizer: `minserve.tokenizer.Tokenizer` is one."""

    def detokenizer(self, skip_special_tokens: bool = True) -> Detokenizer:
        """A decoder of one sample's tokens while they arrive."""
        ...


def pieces(
    tokenizer: Texts | None, token_ids: Iterable[int], *, after: Sequence[int] = ()
) -> list[str]:
    """What each token adds to the text that follows the tokens `after`.

    Special tokens are written out, or nobody would see that they are there. Without a tokenizer
    all pieces are empty.
    """
    ids = list(token_ids)
    if tokenizer is None:
        return [""] * len(ids)
    decoder = tokenizer.detokenizer(skip_special_tokens=False)
    decoder.push(after)
    found = [decoder.push((token,)) for token in ids]
    if found:
        found[-1] += decoder.finish()
    return found
