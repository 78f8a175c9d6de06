"""How long the pages of a cache group are kept: one file per retention, one small interface
(`retention`). And which request holds which pages of a group (`tables`)."""

from __future__ import annotations

from minserve.memory.groups.full import FullRetention
from minserve.memory.groups.retention import Retention
from minserve.memory.groups.window import WindowRetention
from minserve.spec import CacheSpec

RETENTIONS: dict[str, type[FullRetention] | type[WindowRetention]] = {
    "full": FullRetention,
    "window": WindowRetention,
}
"""`CacheSpec.retention` -> its class."""


def retention_of(spec: CacheSpec, block_size: int) -> Retention:
    """The retention of a cache, for pages of `block_size` tokens."""
    return RETENTIONS[spec.retention](spec, block_size)


__all__ = ["RETENTIONS", "FullRetention", "Retention", "WindowRetention", "retention_of"]
