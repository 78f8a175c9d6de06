"""The storage of the KV cache: one block of memory, cut into layers and pages.

Knows shapes and bytes; which page belongs to whom is the manager's business.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minserve.spec import ModelSpec


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
            pages = torch.empty(shape, dtype=dtype, device=device)
            for index, layer in enumerate(group.layers):
                storage[layer] = (pages[index, 0], pages[index, 1])
        self.layers = tuple(storage[layer] for layer in range(spec.num_layers))

    @property
    def nbytes(self) -> int:
        """Bytes reserved for pages."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)
