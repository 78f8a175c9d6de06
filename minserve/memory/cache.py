"""The storage of the KV cache: one block of memory, cut into layers and pages.

Knows shapes and bytes; which page belongs to whom is the manager's business.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import torch
from torch import Tensor

from minserve.spec import ModelSpec

_HUGE_PAGE = 2 << 20


class KVCache:
    """Keys and values of all layers.

    `layers[i]` is `(keys, values)`, each `[num_blocks, num_kv_heads, block_size, head_dim]`: inside
    a page a head's tokens are adjacent, so attention reads them in one run. A page id addresses
    every layer at once, because all caches are kept for the whole sequence.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        storage: dict[int, tuple[Tensor, Tensor]] = {}
        for group in spec.cache_groups():
            shape = (
                len(group.layers),
                2,
                num_blocks,
                group.spec.num_kv_heads,
                block_size,
                group.spec.head_dim,
            )
            # Not zeroed: on a CPU untouched pages then cost no memory, and attention never reads a
            # slot that was not written.
            pages = _empty(shape, dtype, device)
            for index, layer in enumerate(group.layers):
                storage[layer] = (pages[index, 0], pages[index, 1])
        self.layers = tuple(storage[layer] for layer in range(spec.num_layers))

    @property
    def nbytes(self) -> int:
        """Bytes reserved for pages."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory; on Linux, for a CPU, asked for in huge pages.

    A block table scatters a request over the pool, and with pages of 4 KiB nearly every block then
    misses the TLB, which is expensive in a virtual machine: decode attention over a pool larger
    than the caches takes about a quarter longer.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size + _HUGE_PAGE)
    # Only advice: a kernel that refuses it gives ordinary pages.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE_PAGE
    return whole[start : start + size].view(dtype).view(shape)
