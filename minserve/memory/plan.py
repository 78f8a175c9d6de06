"""How the bytes for pages are divided among the cache groups of an engine.

Page counts are questions that the scheduler asks of one group, the *primary* one: the first that
keeps all tokens, or else the one with the longest window. The other groups get so many pages that
they never run out before it does; a window needs few of them, so most bytes go to the primary.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from minserve.config import ResolvedConfig
from minserve.memory.groups import Retention, retention_of
from minserve.spec import CacheGroup


@dataclass(frozen=True)
class GroupPlan:
    """A cache group, and how many pages it has."""

    group: CacheGroup
    num_blocks: int
    num_host_slots: int = 0
    block_bytes: int = 0
    """Bytes of one page over all layers of the group."""
    most_blocks: int | None = None
    """The most pages that one request can hold at once; None: all it ever has."""


def primary_of(groups: Sequence[CacheGroup]) -> int:
    """Index of the group that page counts are about."""
    for index, group in enumerate(groups):
        if group.spec.window is None:
            return index
    windows = [group.spec.window or 0 for group in groups]
    return windows.index(max(windows))


def plan_groups(
    config: ResolvedConfig, kv_bytes: int, groups: Sequence[CacheGroup] | None = None
) -> tuple[GroupPlan, ...]:
    """The groups with as many pages as `kv_bytes` and `memory.host_bytes` hold, and no more than
    requests can use. `groups`: None stands for those of the served model; those of a draft model
    come after them."""
    sizes = _Sizes(config, config.model.cache_groups() if groups is None else groups)
    num_blocks = sizes.most_in(kv_bytes)
    if config.config.memory.prefix_cache == "off":
        num_blocks = min(num_blocks, sizes.usable)
    return sizes.plans(num_blocks, sizes.most_in(config.config.memory.host_bytes))


def plan_blocks(config: ResolvedConfig, num_blocks: int) -> tuple[GroupPlan, ...]:
    """The groups of the served model if the primary one has `num_blocks` pages."""
    sizes = _Sizes(config, config.model.cache_groups())
    return sizes.plans(num_blocks, sizes.most_in(config.config.memory.host_bytes))


class _Sizes:
    """Pages and bytes of each group, for a number of pages of the primary one."""

    def __init__(self, config: ResolvedConfig, groups: Sequence[CacheGroup]) -> None:
        block_size = config.config.memory.block_size
        self.groups = groups
        self.bytes = [block_size * group.bytes_per_token(config.itemsize) for group in groups]
        requests = config.config.scheduling.max_num_seqs
        # Planned and not yet committed: the tokens of one step, or of two with overlap.
        new = config.max_num_batched_tokens * (1 + config.config.scheduling.async_scheduling)
        most = config.blocks_per_request

        def used(retention: Retention) -> int:
            return retention.most_blocks(requests, new, most)

        retentions = [retention_of(group.spec, block_size) for group in groups]
        self.per_request = [each.most_blocks(1, new, most) for each in retentions]
        self.primary = primary_of(groups)
        self.usable = used(retentions[self.primary])
        """Pages of the primary group that all requests together can hold."""
        # With a prefix cache, as many ended requests as run can leave their window behind.
        times = 1 if config.config.memory.prefix_cache == "off" else 2
        self.bounds = [None if each.keeps_all else times * used(each) for each in retentions]
        self.bounds[self.primary] = None

    def counts(self, num_blocks: int) -> list[int]:
        """Pages of each group."""
        return [num_blocks if most is None else min(num_blocks, most) for most in self.bounds]

    def most_in(self, num_bytes: int) -> int:
        """The most pages of the primary group with which all groups fit."""

        def total(num_blocks: int) -> int:
            counts = self.counts(num_blocks)
            return sum(count * size for count, size in zip(counts, self.bytes, strict=True))

        fitting = range(num_bytes // self.bytes[self.primary] + 1)
        return bisect_right(fitting, num_bytes, key=total) - 1

    def plans(self, num_blocks: int, num_slots: int) -> tuple[GroupPlan, ...]:
        """The groups with their pages and host slots."""
        counts, slots = self.counts(num_blocks), self.counts(num_slots)
        columns = (self.groups, counts, slots, self.bytes, self.per_request)
        return tuple(GroupPlan(*column) for column in zip(*columns, strict=True))
