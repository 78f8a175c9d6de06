"""Memory management (Miao et al., section 4.2.3): who owns which page of the KV cache.

`manager` gives pages to requests. Below it: `pool` (free, owned, cached), `tables` (who holds
which), `prefix` with its two indexes (`index`, `radix`) and keys (`chain`), the lower tiers
(`host`, `disk`) with the decision when they pay (`costs`), `layout` for memory without paging, and
`cache`, where the numbers really are, with the order of its `transfers`.
"""

from minserve.memory.assemble import build_manager
from minserve.memory.events import MemoryEvents
from minserve.memory.keys import TokenBlocks, root_key
from minserve.memory.manager import KVManager, MemoryUse
from minserve.memory.pool import BlockPool, IntegrityError
from minserve.memory.prefix.index import HashIndex, IndexNode, Match, PrefixIndex
from minserve.memory.prefix.radix import RadixIndex
from minserve.memory.storage.cache import KVCache
from minserve.memory.storage.store import NoStore, PageStore
from minserve.memory.storage.transfers import TransferOrder
from minserve.memory.tiers.costs import ResumeCosts
from minserve.memory.tiers.disk import DiskTier
from minserve.memory.tiers.host import HostTier

__all__ = [
    "BlockPool",
    "DiskTier",
    "HashIndex",
    "HostTier",
    "IndexNode",
    "IntegrityError",
    "KVCache",
    "KVManager",
    "Match",
    "MemoryEvents",
    "MemoryUse",
    "NoStore",
    "PageStore",
    "PrefixIndex",
    "RadixIndex",
    "ResumeCosts",
    "TokenBlocks",
    "TransferOrder",
    "build_manager",
    "root_key",
]
