"""The storage of the KV cache: for each cache group a block of memory, cut into layers and pages,
and host slots.

Knows shapes and bytes; the manager knows which request holds which page.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from minserve.batch import ForwardBatch
from minserve.memory.plan import GroupPlan
from minserve.memory.storage.transfers import TransferOrder
from minserve.spec import CacheTensor, ModelSpec

_HUGE_PAGE = 2 << 20


class KVCache:
    """Keys and values of all layers: the `PageStore` of a real engine.

    Every cache group has pages of its own, numbered from 0; a page holds the same tokens for every
    layer of its group.
    """

    def __init__(
        self,
        plans: Sequence[GroupPlan],
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        spare_blocks: int = 0,
    ) -> None:
        """`spare_blocks`: pages of each group after those of its plan, which no request gets."""
        order = TransferOrder()
        stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.groups = tuple(
            GroupCache(plan, number, block_size, dtype, device, spare_blocks, order, stream)
            for number, plan in enumerate(plans)
        )
        self._order = order

    def layers_of(self, spec: ModelSpec, model: str = "") -> tuple[tuple[Tensor, Tensor], ...]:
        """`(keys, values)` that each layer of a model attends to, `[num_blocks, num_kv_heads,
        block_size, head_dim]` each."""
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for group in self.groups:
            if group.plan.group.model == model:
                found.update(group.layers)
        return tuple(found[spec.cache_layer(layer)] for layer in range(spec.num_layers))

    def group(self, number: int) -> GroupCache:
        """See `PageStore.group`."""
        return self.groups[number]

    @property
    def nbytes(self) -> int:
        """Bytes reserved for pages on the device."""
        return sum(group.nbytes for group in self.groups)

    @property
    def host_bytes(self) -> int:
        """Bytes reserved for host slots."""
        return sum(group.host_bytes for group in self.groups)

    def submitted(self, batch: ForwardBatch, model: str = "") -> None:
        """See `PageStore.submitted`."""
        numbers = [group.number for group in self.groups if group.plan.group.model == model]
        self._order.submitted(batch, numbers)

    def failed(self) -> None:
        """See `PageStore.failed`."""
        self._order.queued()

    def collected(self) -> None:
        """See `PageStore.collected`."""
        self._order.collected()


class GroupCache:
    """The pages and host slots of one cache group: a `BlockStore`.

    Inside a page the tokens of a head are adjacent, so attention reads them in one run. Tensors of
    equal shape (keys and values) share a block of memory. A host slot holds one page of all layers,
    adjacent in memory.
    """

    def __init__(
        self,
        plan: GroupPlan,
        number: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        spare_blocks: int,
        order: TransferOrder,
        stream: torch.cuda.Stream | None,
    ) -> None:
        self.plan = plan
        self.number = number
        """Its place among the groups of the engine."""
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        """`(keys, values)` of each layer of the group."""
        self._order = order
        self._stream = stream
        self._pools: list[tuple[Tensor, Tensor]] = []
        parts: dict[int, list[Tensor]] = {layer: [] for layer in plan.group.layers}
        for (heads, dim), alike in groupby(plan.group.spec.tensors, _shape):
            # One page: [layers, tensors, heads, block_size, head_dim].
            block = (len(plan.group.layers), len(list(alike)), heads, block_size, dim)
            shape = (*block[:2], plan.num_blocks + spare_blocks, *block[2:])
            # Not zeroed: on a CPU, untouched pages cost no memory, and attention never reads a slot
            # that was not written.
            pool = _empty(shape, dtype, device)
            self._pools.append((pool, _host((plan.num_host_slots, *block), dtype, device)))
            for index, layer in enumerate(plan.group.layers):
                parts[layer] += pool[index].unbind()
        for layer, (keys, values) in parts.items():
            self.layers[layer] = (keys, values)

    @property
    def nbytes(self) -> int:
        """Bytes reserved for pages on the device."""
        return sum(pool.nbytes for pool, _ in self._pools)

    @property
    def host_bytes(self) -> int:
        """Bytes reserved for host slots."""
        return sum(host.nbytes for _, host in self._pools)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy device pages onto others, in every layer, after the work that is already queued."""
        self._order.queued()
        for source, target in zip(sources, targets, strict=True):
            for pool, _ in self._pools:
                pool[:, :, target].copy_(pool[:, :, source])

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the keys and values of single tokens, in every layer, after the work that is already
        queued. See `BlockStore.move`."""
        self._order.queued()
        source, target = torch.tensor(sources), torch.tensor(targets)
        for pool, _ in self._pools:
            size = pool.shape[-2]
            values = pool[:, :, source // size, :, source % size]
            pool[:, :, target // size, :, target % size] = values

    def save(self, blocks: Sequence[int], slots: Sequence[int]) -> None:
        """Copy device pages into host slots; on a GPU in a side stream, in parallel with the batch
        in flight if that is safe (`TransferOrder`)."""
        with self._transfers(self._order.save_waits()):
            for block, slot in zip(blocks, slots, strict=True):
                for pool, host in self._pools:
                    host[slot].copy_(pool[:, :, block], non_blocking=True)

    def load(self, slots: Sequence[int], blocks: Sequence[int]) -> None:
        """Copy host slots into device pages; on a GPU as `save` does."""
        with self._transfers(self._order.load_waits(blocks, self.number)):
            for slot, block in zip(slots, blocks, strict=True):
                for pool, host in self._pools:
                    pool[:, :, block].copy_(host[slot], non_blocking=True)

    def read(self, blocks: Sequence[int]) -> tuple[Tensor, ...]:
        """See `BlockStore.read`. On a GPU the host waits."""
        return tuple(
            pool[:, :, list(blocks)].movedim(2, 0).to("cpu", copy=True) for pool, _ in self._pools
        )

    def read_host(self, slots: Sequence[int]) -> tuple[Tensor, ...]:
        """See `BlockStore.read_host`."""
        if self._stream is not None:
            self._stream.synchronize()
        return tuple(host[list(slots)] for _, host in self._pools)

    def write(self, blocks: Sequence[int], pages: Sequence[Tensor]) -> None:
        """See `BlockStore.write`."""
        with self._transfers(self._order.load_waits(blocks, self.number)):
            for (pool, _), content in zip(self._pools, pages, strict=True):
                for block, page in zip(blocks, content, strict=True):
                    pool[:, :, block].copy_(page)

    def token_shapes(self, num_tokens: int) -> tuple[tuple[int, ...], ...]:
        """See `BlockStore.token_shapes`."""
        shapes = [pool.shape for pool, _ in self._pools]
        return tuple((*shape[:2], shape[3], num_tokens, shape[5]) for shape in shapes)

    def read_slot(self, slot: int) -> memoryview:
        """The bytes of a host slot."""
        if self._stream is not None:
            self._stream.synchronize()
        parts = [host[slot].reshape(-1).view(torch.uint8) for _, host in self._pools]
        content = torch.cat(parts) if len(parts) > 1 else parts[0]
        return memoryview(content.numpy().data)

    def write_slot(self, slot: int, data: bytes) -> None:
        """Fill a host slot with bytes that `read_slot` returned."""
        if self._stream is not None:
            self._stream.synchronize()
        content, start = torch.frombuffer(bytearray(data), dtype=torch.uint8), 0
        for _, host in self._pools:
            target = host[slot].view(-1).view(torch.uint8)
            target.copy_(content[start : start + target.numel()])
            start += target.numel()

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


def _shape(tensor: CacheTensor) -> tuple[int, int]:
    return tensor.num_heads, tensor.head_dim


def _host(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Host slots; pinned if a GPU copies from them asynchronously."""
    if device.type == "cuda":
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return _empty(shape, dtype, torch.device("cpu"))


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
