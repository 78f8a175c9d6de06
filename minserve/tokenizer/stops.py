"""Stop strings in text that arrives in pieces; the pieces do not affect the result.

The rule: of all occurrences of all stop strings, the one that starts earliest ends the text (if two
start together, the shorter one). The rule is about the text, so how the text was split into tokens
changes nothing. Its cost: while a longer stop string that started earlier could still be completed,
an occurrence that was found has to wait for the next piece.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopChecker:
    """Passes text on until a stop string, and holds back everything that could be part of one.

    `include`: the stop string itself is passed on too. `matched` is the stop string that ended
    the text, or None.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self._floor = 0  # occurrences that end at or before this index of `_held` do not count
        self.matched: str | None = None

    def push(self, delta: str, may_stop: bool = True) -> str:
        """Add text; returns the text that is now certain to be part of the result.

        With `may_stop=False`, no occurrence that ends in the text so far counts, now or later: used
        for the text of the first `min_tokens` tokens. An occurrence that begins there and ends
        later does count.
        """
        if self.matched is not None:
            return ""
        if not self._stops:
            return delta
        self._held += delta
        if not may_stop:
            self._floor = len(self._held)
        possible = self._possible_start()
        start, stop = self._first()
        if stop is not None and start <= possible:
            return self._cut(start, stop)
        return self._release(min(start, possible))

    def finish(self) -> str:
        """There is no more text: decide about the held-back text, and return the rest."""
        if self.matched is not None:
            return ""
        start, stop = self._first()
        return self._release(len(self._held)) if stop is None else self._cut(start, stop)

    def _first(self) -> tuple[int, str | None]:
        """Start and text of the complete occurrence that counts by the rule; if there is none, the
        text's length and None."""
        best: tuple[int, str | None] = (len(self._held), None)
        for stop in self._stops:
            start = self._held.find(stop, max(0, self._floor - len(stop) + 1))
            if start < 0:
                continue
            if best[1] is None or (start, len(stop)) < (best[0], len(best[1])):
                best = (start, stop)
        return best

    def _possible_start(self) -> int:
        """Start of the longest tail that is a prefix of a stop string; the text's length
        if there is none."""
        held = self._held
        earliest = len(held)
        for stop in self._stops:
            start = held.find(stop[0], max(0, len(held) - len(stop) + 1), earliest)
            while start >= 0:
                if stop.startswith(held[start:]):
                    earliest = start
                    break
                start = held.find(stop[0], start + 1, earliest)
        return earliest

    def _release(self, count: int) -> str:
        released, self._held = self._held[:count], self._held[count:]
        self._floor = max(0, self._floor - count)
        return released

    def _cut(self, start: int, stop: str) -> str:
        released = self._held[: start + len(stop) if self._include else start]
        self._held = ""
        self.matched = stop
        return released
