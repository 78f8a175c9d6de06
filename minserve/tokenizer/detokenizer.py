"""Token ids to text as they arrive: whole characters only, and each piece of text once.

A token is not always a piece of text: it may end in the middle of a character, and its text may
depend on its neighbours. Both classes guarantee that all pushes and the final flush together give
exactly the text of all tokens decoded at once, and that a push costs the same however long the
text already is.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

_REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_MAX_BYTES_TO_COME = 3  # of a UTF-8 character whose first byte has arrived


class Detokenizer(Protocol):
    """Turns one sample's tokens into text."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Add tokens; returns the characters that are now complete and were not returned before."""
        ...

    def finish(self) -> str:
        """No more tokens follow: returns the text that was held back, incomplete
        bytes as U+FFFD."""
        ...


class ByteDetokenizer:
    """For byte-level vocabularies (GPT-2, Llama 3, Qwen): a token is a sequence of bytes.

    Text is the UTF-8 decoding of all bytes, so a byte decoder that keeps an incomplete character
    for the next call is enough. `piece(token_id)` gives a token's bytes; empty for tokens that are
    omitted from the text.
    """

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Iterable[int]) -> str:
        """Add tokens; returns the characters that are now complete."""
        return self._decoder.decode(b"".join(map(self._piece, token_ids)))

    def finish(self) -> str:
        """Returns the text that was held back."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For all other vocabularies: decode a short window of tokens with and without the new ones.

    The window starts with tokens whose text has been returned. They represent all earlier text, so
    that the decoder treats the new tokens as the middle of a text (it would strip the space before
    a first token). This is the technique of vLLM and text-generation-inference, with two additions
    that make it exact. A run of byte tokens (`<0xE4>`: SentencePiece's byte fallback) is held back
    until it ends, because a decoder shows the whole run as U+FFFD if any byte of it is wrong. And
    the window grows while its known part shows no text.

    `piece(token_id)` is a token's content, None for tokens that are omitted; `decode(ids)` shows
    tokens as text. `byte_level`: the decoder joins bytes of neighbouring tokens, and a trailing
    U+FFFD may be a character that is still incomplete.
    """

    def __init__(
        self,
        piece: Callable[[int], str | None],
        decode: Callable[[list[int]], str],
        byte_level: bool = False,
    ) -> None:
        self._piece = piece
        self._decode = decode
        self._byte_level = byte_level
        self._window: list[int] = []
        self._num_known = 0  # tokens of the window whose text has been returned
        self._known = ""  # their text, as the window's decoder shows it

    def push(self, token_ids: Iterable[int]) -> str:
        """Add tokens; returns the text that is now final."""
        last: str | None = None
        for token in token_ids:
            piece = self._piece(token)
            if piece is not None:
                self._window.append(token)
                last = piece
        if last is None or _BYTE_TOKEN.fullmatch(last):
            return ""
        text = self._decode(self._window)
        if not text.startswith(self._known) or self._may_be_incomplete(text):
            return ""
        return self._emit(text)

    def finish(self) -> str:
        """Returns the text that was held back."""
        return self._emit(self._decode(self._window)) if self._window else ""

    def _may_be_incomplete(self, text: str) -> bool:
        if not self._byte_level or not text.endswith(_REPLACEMENT):
            return False
        return len(self._window) - self._num_known <= _MAX_BYTES_TO_COME

    def _emit(self, text: str) -> str:
        delta = text[len(self._known) :]
        # The new tokens become known, unless they show no text by themselves.
        recent = self._window[self._num_known :]
        shown = self._decode(recent) if recent else ""
        if shown:
            self._window, self._known = recent, shown
        else:
            self._known = text
        self._num_known = len(self._window)
        return delta


def byte_level_alphabet() -> Mapping[str, int]:
    """The printable character for each byte in byte-level vocabularies (GPT-2).

    Printable Latin-1 characters represent themselves; the other bytes, in order, are represented by
    the characters from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    hidden = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update((chr(0x100 + index), byte) for index, byte in enumerate(hidden))
    return alphabet
