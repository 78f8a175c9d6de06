"""The storage of the KV cache: one block of memory, cut into layers and pages, and host slots.

Knows shapes and bytes; the manager knows which request holds which page.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minserve.batch import ForwardBatch
from minserve.memory.storage.transfers import TransferOrder
from minserve.spec import ModelSpec

_HUGE_PAGE = 2 << 20


class KVCache:
    """Keys and values of all layers.

    `layers[i]` is `(keys, values)`, each `[num_blocks, num_kv_heads, block_size, head_dim]`: inside
    a page the tokens of a head are adjacent, so attention reads them in one run. A page id
    addresses every layer at once, because all caches are kept for the whole sequence. A host slot
    holds one page of all layers, adjacent in memory. This is the `BlockStore` of a real engine.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        num_host_slots: int = 0,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._groups: list[tuple[Tensor, Tensor]] = []
        self._host_bytes = 0
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
            # Not zeroed: on a CPU, untouched pages cost no memory, and attention never reads a slot
            # that was not written.
            pool = _empty(shape, dtype, device)
            # One page of this group: [layers, 2, kv_heads, block_size, head_dim].
            block = (shape[0], 2, *shape[3:])
            self._groups.append((pool, self._host(num_host_slots, block, dtype, device)))
            for index, layer in enumerate(group.layers):
                storage[layer] = (pool[index, 0], pool[index, 1])
        self.layers = tuple(storage[layer] for layer in range(spec.num_layers))
        self._order = TransferOrder()
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def _host(
        self, num_slots: int, block: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Slots `[num_slots, *block]`; pinned if a GPU copies from them asynchronously."""
        self._host_bytes += num_slots * math.prod(block) * dtype.itemsize
        shape = (num_slots, *block)
        if device.type == "cuda":
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        return _empty(shape, dtype, torch.device("cpu"))

    @property
    def nbytes(self) -> int:
        """Bytes reserved for pages on the device."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    @property
    def host_bytes(self) -> int:
        """Bytes reserved for host slots."""
        return self._host_bytes

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy device pages onto others, in every layer, after the work that is already queued."""
        self._order.queued()
        for source, target in zip(sources, targets, strict=True):
            for pool, _ in self._groups:
                pool[:, :, target].copy_(pool[:, :, source])

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the keys and values of single tokens, in every layer, after the work that is already
        queued. See `BlockStore.move`."""
        self._order.queued()
        source, target = torch.tensor(sources), torch.tensor(targets)
        size = self.block_size
        for pool, _ in self._groups:
            values = pool[:, :, source // size, :, source % size]
            pool[:, :, target // size, :, target % size] = values

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Copy device pages into host slots; on a GPU in a side stream, in parallel with the batch
        in flight if that is safe (`TransferOrder`)."""
        with self._transfers(self._order.save_waits()):
            for block, slot in zip(blocks, slots, strict=True):
                for pool, host in self._groups:
                    host[slot].copy_(pool[:, :, block], non_blocking=True)

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy host slots into device pages; on a GPU as `save` does."""
        with self._transfers(self._order.load_waits(blocks)):
            for slot, block in zip(slots, blocks, strict=True):
                for pool, host in self._groups:
                    pool[:, :, block].copy_(host[slot], non_blocking=True)

    def read_slot(self, slot: int) -> memoryview:
        """The bytes of a host slot, group after group."""
        if self._stream is not None:
            self._stream.synchronize()
        parts = [host[slot].reshape(-1).view(torch.uint8) for _, host in self._groups]
        content = torch.cat(parts) if len(parts) > 1 else parts[0]
        return memoryview(content.numpy().data)

    def write_slot(self, slot: int, data: bytes) -> None:
        """Fill a host slot with bytes that `read_slot` returned."""
        if self._stream is not None:
            self._stream.synchronize()
        content, start = torch.frombuffer(bytearray(data), dtype=torch.uint8), 0
        for _, host in self._groups:
            target = host[slot].view(-1).view(torch.uint8)
            target.copy_(content[start : start + target.numel()])
            start += target.numel()

    def submitted(self, batch: ForwardBatch) -> None:
        """See `BlockStore.submitted`."""
        self._order.submitted(batch)

    def failed(self) -> None:
        """See `BlockStore.failed`."""
        self._order.queued()

    def collected(self) -> None:
        """See `BlockStore.collected`."""
        self._order.collected()

    @contextlib.contextmanager
    def _transfers(self, wait: bool) -> Iterator[None]:
        """Run copies in the side stream. With `wait` they start after the work that is queued now;
        work that is queued later always waits for the copies. The host does not wait."""
        if self._stream is None:
            yield
            return
        compute = torch.cuda.current_stream(self._stream.device)
        if wait:
            self._stream.wait_stream(compute)
        with torch.cuda.stream(self._stream):
            yield
        compute.wait_stream(self._stream)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory; on Linux, for a CPU, requested as huge pages.

    A block table scatters a request over the pool. With memory pages of 4 KiB, nearly every block
    then misses the TLB, which is expensive in a virtual machine: decode attention over a pool
    larger than the processor's caches takes about a quarter longer.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size + _HUGE_PAGE)
    # Only a hint: an operating system that refuses it gives ordinary pages.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % _HUGE_PAGE
    return whole[start : start + size].view(dtype).view(shape)
