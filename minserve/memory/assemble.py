"""Builds the memory manager from a configuration: the only file that maps each
switch to a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from minserve.clock import Clock
from minserve.config import ResolvedConfig
from minserve.config.rules.memory import disk_folder, disk_refused
from minserve.memory.layout import reservation
from minserve.memory.manager import KVManager
from minserve.memory.plan import GroupPlan
from minserve.memory.prefix.index import HashIndex, PrefixIndex
from minserve.memory.prefix.radix import RadixIndex
from minserve.memory.storage.store import PageStore
from minserve.memory.tiers.costs import Resume, ResumeCosts
from minserve.memory.tiers.disk import DiskTier

INDEXES: dict[str, type[HashIndex] | type[RadixIndex]] = {"hash": HashIndex, "radix": RadixIndex}
"""`memory.prefix_cache` -> its class."""


def build_manager(
    config: ResolvedConfig,
    plans: Sequence[GroupPlan],
    clock: Clock,
    store: PageStore | None = None,
) -> KVManager:
    """The manager of these pages. Without a `store`, pages are only counted.

    Raises ConfigError if the directory for the disk tier can no longer be written.
    """
    memory = config.config.memory
    index: PrefixIndex | None = None
    if memory.prefix_cache != "off":
        index = INDEXES[memory.prefix_cache]()
    reserve = None
    if memory.layout == "contiguous":
        reserve = reservation(memory.reservation, config.max_model_len)
    return KVManager(
        plans,
        memory.block_size,
        config.config.scheduling.max_num_seqs,
        config.blocks_per_request,
        reservation=reserve,
        index=index,
        disk=_disk(config),
        store=store,
        costs=ResumeCosts(cast(Resume, memory.resume)),
        clock=clock,
    )


def _disk(config: ResolvedConfig) -> DiskTier | None:
    if not config.config.memory.disk_bytes:
        return None
    folder = disk_folder(config)
    try:
        return DiskTier(folder, config.config.memory.disk_bytes)
    except OSError as error:  # `resolve` has checked it, but the disk may have changed.
        raise disk_refused(folder, error.strerror or str(error)) from None
