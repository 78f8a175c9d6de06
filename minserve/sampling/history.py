"""Which tokens a request has seen, and how often it generated each: the input of penalties.

Counting a thousand tokens again for each draw would take longer than the draw. So the counts of a
request are kept as long as the request, and only its new tokens are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from minserve.request import Request


class TokenCounts:
    """The distinct tokens of one request in order of appearance, with output counts."""

    def __init__(self) -> None:
        self._slots: dict[int, int] = {}
        self._tokens = np.zeros(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.int64)
        self._num_seen = 0

    def update(self, token_ids: list[int], num_prompt_tokens: int) -> None:
        """Count the tokens of `token_ids` that were not there at the last call."""
        if len(token_ids) < self._num_seen:  # tokens were removed: start again
            self.__init__()  # type: ignore[misc]
        for index in range(self._num_seen, len(token_ids)):
            token = token_ids[index]
            slot = self._slots.setdefault(token, len(self._slots))
            if slot == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._tokens[slot] = token
            self._counts[slot] += index >= num_prompt_tokens
        self._num_seen = len(token_ids)

    @property
    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Distinct tokens and how often each was generated, `[num_distinct]` each."""
        num = len(self._slots)
        return self._tokens[:num], self._counts[:num]

    def with_tokens(
        self, more: Sequence[int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """`arrays`, as if `more` tokens had been generated too; nothing is kept of them."""
        tokens, counts = self.arrays
        unseen: dict[int, int] = {}
        slots = []
        for token in more:
            slot = self._slots.get(token)
            if slot is None:
                slot = unseen.setdefault(token, len(tokens) + len(unseen))
            slots.append(slot)
        tokens = np.concatenate([tokens, np.array(list(unseen), dtype=np.int64)])
        counts = np.concatenate([counts, np.zeros(len(unseen), dtype=np.int64)])
        np.add.at(counts, slots, 1)
        return tokens, counts


# A cache keyed by identity, not state: dropping it only costs time.
_MEMO: WeakKeyDictionary[Request, TokenCounts] = WeakKeyDictionary()


def token_counts(
    request: Request, proposed: Sequence[int] = ()
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct tokens of prompt and output, and how often each was generated. `proposed` tokens
    count as generated."""
    counts = _MEMO.get(request)
    if counts is None:
        counts = _MEMO[request] = TokenCounts()
    counts.update(request.token_ids, request.num_prompt_tokens)
    return counts.with_tokens(proposed) if proposed else counts.arrays
