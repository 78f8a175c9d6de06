"""The rules of memory: which pages can be shared or kept, where, and how many bytes they need.

Some refusals depend on a measurement, a call or the disk itself. Their errors are made here too;
the room that detects the problem raises them.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

from minserve.config.knobs import ConfigError
from minserve.config.question import Answer, Question, Rule
from minserve.config.resolved import ResolvedConfig
from minserve.spec import CacheGroup


def sharing_needs_paging(question: Question) -> None:
    """Refuse a prefix cache if each request has contiguous memory."""
    memory = question.config.memory
    if memory.prefix_cache != "off" and memory.layout == "contiguous":
        raise ConfigError(
            f"memory.prefix_cache={memory.prefix_cache!r} shares pages, and "
            "memory.layout='contiguous' gives each request neighbouring pages of its own: use "
            "memory.layout='paged' or memory.prefix_cache='off'"
        )


def managing_needs_cache(question: Question) -> None:
    """Refuse settings about pages if nothing is cached."""
    memory = question.config.memory
    managed = memory.prefix_cache != "off" or memory.layout == "contiguous"
    if managed and not memory.kv_cache:
        raise ConfigError(
            f"memory.kv_cache=False keeps nothing that memory.prefix_cache={memory.prefix_cache!r} "
            f"or memory.layout={memory.layout!r} could manage: turn the cache on, or use "
            "prefix_cache='off' and layout='paged'"
        )


def host_memory_has_a_use(question: Question) -> None:
    """Refuse a host tier if nothing is saved to it."""
    config, memory = question.config, question.config.memory
    used = memory.prefix_cache != "off" or config.scheduling.preemption == "swap"
    if memory.host_bytes > 0 and not used:
        raise ConfigError(
            f"memory.host_bytes={memory.host_bytes} would stay empty: it takes pages of "
            "memory.prefix_cache='hash' or 'radix', or of scheduling.preemption='swap'"
        )


def disk_lies_below_host(question: Question) -> None:
    """Refuse a disk tier if nothing is evicted to it."""
    memory = question.config.memory
    if memory.disk_bytes > 0 and not (memory.host_bytes and memory.prefix_cache != "off"):
        raise ConfigError(
            f"memory.disk_bytes={memory.disk_bytes} lies below the host tier of the prefix cache: "
            "set memory.host_bytes and memory.prefix_cache too"
        )


def neighbours_keep_everything(question: Question) -> None:
    """Refuse contiguous memory if pages are freed while their request goes on."""
    windows = _windows(question.resolved.model.cache_groups())
    if question.config.memory.layout == "contiguous" and windows:
        raise ConfigError(
            "memory.layout='contiguous' keeps neighbouring pages for a whole request, and layers "
            f"of this model free theirs behind a window of {min(windows)} tokens: use "
            f"memory.layout='paged', or scheduling.max_model_len={min(windows)} at most, so that "
            "nothing is ever behind a window"
        )


def tree_keeps_everything(question: Question) -> None:
    """Refuse a radix tree if the first pages of a prefix are freed before the last ones."""
    groups = question.resolved.model.cache_groups()
    windows = _windows(groups)
    if question.config.memory.prefix_cache == "radix" and len(windows) == len(groups):
        raise ConfigError(
            "memory.prefix_cache='radix' finds a page through the pages before it, and every layer "
            f"of this model frees those behind a window of {max(windows)} tokens: use "
            f"memory.prefix_cache='hash', or scheduling.max_model_len={max(windows)} at most"
        )


def tiers_hold_one_group(question: Question) -> Answer | None:
    """Keep evicted pages of the prefix cache out of lower tiers if they are of several kinds: a
    prefix would have to be found there in all of them at once."""
    memory, groups = question.config.memory, question.resolved.model.cache_groups()
    several = len(groups) > 1 or _windows(groups)
    if not several or memory.prefix_cache == "off" or not memory.host_bytes:
        return None
    kinds = "caches of several kinds" if len(groups) > 1 else "a cache that is freed from the front"
    if memory.disk_bytes or question.config.scheduling.preemption != "swap":
        field = "disk_bytes" if memory.disk_bytes else "host_bytes"
        raise ConfigError(
            f"memory.{field}={getattr(memory, field)} takes evicted pages of memory.prefix_cache="
            f"{memory.prefix_cache!r}, and this model has {kinds}, whose pages are found on the "
            "device only: use 0, with scheduling.preemption='swap' if the host is to keep "
            "preempted requests"
        )
    note = (
        "memory.host_bytes: holds preempted requests only, because evicted pages of "
        f"memory.prefix_cache={memory.prefix_cache!r} are dropped in a model with {kinds}"
    )
    return Answer(notes=(note,))


def samples_share_blocks(question: Question) -> Answer | None:
    """Turn sharing off if samples of a prompt have nothing to share."""
    memory = question.config.memory
    if not memory.copy_on_write:
        return None
    reasons = [
        (not memory.kv_cache, "memory.kv_cache=False"),
        (memory.layout == "contiguous", "memory.layout='contiguous'"),
        (question.config.scheduling.policy == "static", "scheduling.policy='static'"),
    ]
    for applies, field in reasons:
        if applies:
            note = f"memory.copy_on_write: off, because {field} starts samples on their own"
            return Answer({"memory.copy_on_write": False}, (note,))
    return None


def pool_by_default(question: Question) -> Answer | None:
    """Fill in the pool's size on a CPU. On a GPU a profile run finds it."""
    config, resolved = question.config, question.resolved
    if config.memory.kv_bytes is not None or question.device.type != "cpu":
        return None
    wanted = config.scheduling.max_num_seqs * resolved.blocks_per_request * resolved.block_bytes
    return Answer(
        {"memory.kv_bytes": max(resolved.block_bytes, min(wanted, _machine_bytes() // 8))}
    )


def host_holds_a_block(question: Question) -> None:
    """Refuse a host tier smaller than a page."""
    host_bytes, block_bytes = question.config.memory.host_bytes, question.resolved.block_bytes
    if 0 < host_bytes < block_bytes:
        raise ConfigError(
            f"memory.host_bytes={host_bytes} holds no page, which takes {block_bytes} bytes in "
            "this model: raise it, or say 0 for no host tier"
        )


def pool_holds_a_block(question: Question) -> None:
    """Refuse a pool smaller than a page."""
    memory, block_bytes = question.config.memory, question.resolved.block_bytes
    if memory.kv_bytes is not None and memory.kv_bytes < block_bytes:
        raise ConfigError(
            f"memory.kv_bytes={memory.kv_bytes} holds no page: one page of memory.block_size="
            f"{memory.block_size} tokens takes {block_bytes} bytes in this model; raise kv_bytes "
            "or lower block_size"
        )


def disk_can_be_written(question: Question) -> None:
    """Refuse a directory for the disk tier that cannot be created or written. Creates nothing."""
    memory = question.config.memory
    if not memory.disk_bytes:
        return
    folder = disk_folder(question.resolved)
    reason = _why_not_writable(Path(folder))
    if reason is not None:
        raise disk_refused(folder, reason)


def disk_folder(config: ResolvedConfig) -> str:
    """The directory of the disk tier."""
    return config.config.memory.disk_path or tempfile.gettempdir()


def disk_refused(folder: str, reason: str) -> ConfigError:
    """The error for a disk-tier directory that cannot be used."""
    return ConfigError(
        f"memory.disk_path={folder!r} cannot be written ({reason}): name another directory, or set "
        "memory.disk_bytes=0"
    )


def pool_refused(
    config: ResolvedConfig, allowed_bytes: int, used_bytes: int, peak_bytes: int
) -> ConfigError:
    """The error if a profile run on a GPU found no room for a page beside the largest batch."""
    share = config.config.memory.gpu_memory_utilization
    return ConfigError(
        f"memory.gpu_memory_utilization={share} allows {allowed_bytes} bytes; {used_bytes} are in "
        f"use and the largest batch needs {peak_bytes} more, which leaves no page: raise it, or "
        "lower scheduling.max_num_batched_tokens"
    )


def pin_refused() -> ConfigError:
    """The error if a prefix is to be pinned and there is no prefix cache."""
    return ConfigError(
        "pin() keeps pages of the prefix cache, and memory.prefix_cache='off' has none: use "
        "memory.prefix_cache='hash' or 'radix'"
    )


def _windows(groups: Sequence[CacheGroup]) -> list[int]:
    """The windows of those groups that have one."""
    return [group.spec.window for group in groups if group.spec.window is not None]


def _why_not_writable(folder: Path) -> str | None:
    """Why no file can be created in this directory, or the directory itself; None if they can."""
    while True:
        try:
            mode = os.stat(folder).st_mode
            break
        except FileNotFoundError as error:
            if folder == folder.parent:  # Not even the root or the drive exists.
                return error.strerror
            folder = folder.parent
        except OSError as error:
            return error.strerror or str(error)
    if not stat.S_ISDIR(mode):
        return f"{str(folder)!r} is no directory"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{str(folder)!r} may not be written to"
    return None


def _machine_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        # Windows has no sysconf; use a pool that suits a laptop.
        return 8 << 30


RULES: tuple[Rule, ...] = (
    sharing_needs_paging,
    managing_needs_cache,
    host_memory_has_a_use,
    disk_lies_below_host,
    neighbours_keep_everything,
    tree_keeps_everything,
    tiers_hold_one_group,
    samples_share_blocks,
    pool_by_default,
    host_holds_a_block,
    pool_holds_a_block,
    disk_can_be_written,
)
