"""A request's tokens cut into pages; each page has a key made of all tokens up to its end.

The keys and values in a page depend on every token before it, so a page may be reused only if the
whole prefix is the same. Hash chain as in vLLM, with SHA-256, because a collision of two prefixes
would show one caller the text of another.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

Key = bytes
"""SHA-256 over the parent's key and the page's tokens."""


def root_key(namespace: Sequence[str]) -> Key:
    """The parent key of first pages. Requests share pages only within one namespace, which holds
    everything besides the tokens that changes keys and values (an adapter), and a salt that limits
    which requests may share."""
    digest = hashlib.sha256()
    for part in namespace:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


class TokenBlocks:
    """The full pages of a growing list of tokens. Keys are computed once, when first needed."""

    def __init__(self, root: Key, token_ids: Sequence[int], block_size: int) -> None:
        self.root = root
        self.block_size = block_size
        self._token_ids = token_ids  # the caller's list: it grows while the request generates
        self._keys: list[Key] = []

    @property
    def num_tokens(self) -> int:
        """Tokens known so far."""
        return len(self._token_ids)

    def tokens(self, index: int) -> tuple[int, ...]:
        """Tokens of page `index`; fewer than a page at the end."""
        start = index * self.block_size
        return tuple(self._token_ids[start : start + self.block_size])

    def key(self, index: int) -> Key:
        """Key of full page `index`."""
        keys = self._keys
        while len(keys) <= index:
            tokens = self.tokens(len(keys))
            parent = keys[-1] if keys else self.root
            keys.append(hashlib.sha256(parent + array("q", tokens).tobytes()).digest())
        return keys[index]
