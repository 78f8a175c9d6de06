"""One sample's text as it grows: combines detokenisation and stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minserve.request import SamplingParams
from minserve.tokenizer.stops import StopChecker

if TYPE_CHECKING:
    from minserve.tokenizer.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into text that can be shown at once, because it never changes later.

    Not needed without streaming and stop strings: `Tokenizer.decode` at the end gives the same
    text. A token that ends the text by its id (end of sequence, `stop_token_ids`) is not pushed
    unless it is to be part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = tokenizer.detokenizer(params.skip_special_tokens)
        self._checker = StopChecker(params.stop, params.include_stop_str_in_output)
        self._min_tokens = params.min_tokens if params.stop else 0
        self._has_stops = bool(params.stop)
        self._parts: list[str] = []
        self._finished = False
        self.num_tokens = 0
        """Tokens taken. If `stopped_by` is set, the last of them completed the stop string; later
        ones (a verifier may push several at once) must be dropped."""

    @property
    def text(self) -> str:
        """All text returned so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._checker.matched

    def push(self, token_ids: Sequence[int]) -> str:
        """Add tokens; returns the new text that is final.

        Stop strings are searched after every token. An occurrence counts only if it ends after the
        text of the first `min_tokens` tokens. After a stop string was found, and after `finish`,
        nothing is added.
        """
        if self._finished or self.stopped_by is not None:
            return ""
        if not self._has_stops:
            self.num_tokens += len(token_ids)
            return self._add(self._detokenizer.push(token_ids))
        delta = ""
        for token in token_ids:
            self.num_tokens += 1
            text = self._detokenizer.push((token,))
            delta += self._checker.push(text, may_stop=self.num_tokens > self._min_tokens)
            if self.stopped_by is not None:
                break
        return self._add(delta)

    def finish(self) -> str:
        """No more tokens follow: returns the text that was held back. May set `stopped_by`."""
        if self._finished:
            return ""
        self._finished = True
        if self.stopped_by is not None:
            return ""
        may_stop = self.num_tokens >= self._min_tokens
        delta = self._checker.push(self._detokenizer.finish(), may_stop)
        return self._add(delta + self._checker.finish())

    def _add(self, delta: str) -> str:
        if delta:
            self._parts.append(delta)
        return delta
