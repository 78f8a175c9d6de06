"""The cached tokens of one request outside any engine: what another engine needs to continue it.

Tokens lie side by side here, not in pages, so that the other engine may have pages of another size.
Everything is on the CPU and can be pickled. Knows nothing about requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minserve.spec import CacheGroup


@dataclass(frozen=True)
class ExportedGroup:
    """The tokens of one cache group, from position `first` to the request's last computed token."""

    group: CacheGroup
    first: int
    tensors: tuple[Tensor, ...]
    """Each `[layers, tensors, num_heads, num_tokens, head_dim]`: the group's tensors of one shape,
    such as keys and values. Empty for pages without content."""


@dataclass(frozen=True)
class ExportedPages:
    """The computed tokens of one request, in every cache group."""

    num_tokens: int
    """Computed tokens. A group with a window has only the last of them."""
    groups: tuple[ExportedGroup, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(tensor.nbytes for group in self.groups for tensor in group.tensors)


def joined(pages: Sequence[Tensor], begin: int, stop: int) -> tuple[Tensor, ...]:
    """Tokens `begin` to `stop - 1` from pages: `[num_pages, layers, tensors, num_heads, block_size,
    head_dim]` each -> `[layers, tensors, num_heads, stop - begin, head_dim]`."""
    return tuple(
        page.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)[..., begin:stop, :].contiguous()
        for page in pages
    )


def cut(
    tensors: Sequence[Tensor], first: int, start: int, num_pages: int, block_size: int
) -> tuple[Tensor, ...]:
    """Pages from tokens, the reverse of `joined`. The tokens begin at position `first`, and the
    pages at position `start`; places without a token are zero."""
    pages = []
    for tokens in tensors:
        room = tokens.new_zeros(*tokens.shape[:3], num_pages * block_size, tokens.shape[4])
        skipped, before = max(0, start - first), max(0, first - start)
        some = tokens[..., skipped : skipped + num_pages * block_size - before, :]
        room[..., before : before + some.shape[3], :] = some
        shape = (*tokens.shape[:3], num_pages, block_size, tokens.shape[4])
        pages.append(room.view(shape).permute(3, 0, 1, 2, 4, 5))
    return tuple(pages)
