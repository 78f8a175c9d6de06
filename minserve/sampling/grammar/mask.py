"""The tokens that a grammar allows next, for the samples of one prompt.

The rule is a pure function of the generated tokens. A cursor per sample remembers where the last
question was, so that the next one consumes one token; a question about another branch (a draft, a
request that was moved) takes back the tokens that differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from operator import eq
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minserve.request import Request, TokenMask

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarError(RuntimeError):
    """A grammar could not be followed any further: a limit of the parser."""


class GrammarMask:
    """Allows the tokens that continue a text of one form, and the end where the text is complete.

    Tokens that a grammar bans are not drawn, but may be proposed; after one, everything is allowed,
    because the answer is not used.
    """

    def __init__(self, start: LLMatcher, end_token_ids: Sequence[int], vocab_size: int) -> None:
        """`start` is a matcher at the beginning of the grammar, which is copied; `end_token_ids`
        are the tokens that end this request's text; `vocab_size` is the tokenizer's."""
        self._start = start
        self._cursors: dict[int, _Cursor] = {}
        self._vocab_size = vocab_size
        length = max(vocab_size, *(token + 1 for token in end_token_ids))
        self._ends = np.zeros(-(-length // 8), dtype=np.uint8)
        for token in end_token_ids:
            self._ends[token // 8] |= 1 << token % 8

    @property
    def needs_known_tokens(self) -> bool:
        """See `LogitsMask`."""
        return True

    def at(self, request: Request, tokens: Sequence[int]) -> TokenMask:
        """See `LogitsMask.at`. Raises GrammarError if the grammar's parser gives up."""
        cursor = self._cursors.get(request.sample_index)
        if cursor is None:
            cursor = self._cursors[request.sample_index] = _Cursor(
                self._start.deep_copy(), self._vocab_size
            )
        try:
            if not cursor.move_to(tokens[request.num_prompt_tokens :]):
                return TokenMask()
            return TokenMask(allowed=self._bits(cursor))
        except GrammarError:
            del self._cursors[request.sample_index]  # a matcher that failed once fails always
            raise

    def _bits(self, cursor: _Cursor) -> npt.NDArray[np.uint8]:
        """`TokenMask.allowed` at the cursor."""
        words = np.frombuffer(cursor.bitmask(), dtype=np.uint8)
        whole, rest = divmod(self._vocab_size, 8)
        is_complete = words[whole] >> rest & 1  # the grammar's own end, behind the vocabulary
        bits = np.zeros(len(self._ends), dtype=np.uint8)
        bits[:whole] = words[:whole]
        if rest:
            bits[whole] = words[whole] & (1 << rest) - 1
        if is_complete:
            bits |= self._ends
        return bits


class _Cursor:
    """A matcher, and the tokens that it has consumed."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._consumed: list[int] = []

    def move_to(self, tokens: Sequence[int]) -> bool:
        """Follow these tokens from the beginning of the text. False if the grammar bans one."""
        known = self._consumed
        if known != tokens[: len(known)]:
            same = sum(1 for _ in takewhile(bool, map(eq, known, tokens)))
            if not self._matcher.rollback(len(known) - same):
                raise self._failure()
            del known[same:]
        new = list(tokens[len(known) :])
        if not new:
            return True
        # A model may have more rows than its tokenizer has tokens.
        legal = list(takewhile(self._vocab_size.__gt__, new))
        taken = self._matcher.try_consume_tokens(legal)
        if self._matcher.is_error():
            raise self._failure()
        known += new[:taken]
        return taken == len(new)

    def bitmask(self) -> bytes:
        """llguidance's mask: a bit per token, and one for the end of the grammar."""
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise self._failure()
        return bits

    def _failure(self) -> GrammarError:
        reason = " ".join(self._matcher.get_error().split())[:400]
        return GrammarError(f"structured_outputs cannot be followed here: {reason}")
