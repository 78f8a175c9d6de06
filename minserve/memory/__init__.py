"""Memory management (Miao et al., section 3.2.3): which request has which pages of the KV cache.

`manager` gives pages to requests, in every cache group of the model (`group`); `plan` divides the
bytes among the groups, and `groups/` says how long each keeps its pages and which request holds
which (`tables`). The manager also uses `pool` (free, owned and cached pages), `reuse` (tokens of a
request that are already computed), `swap` (preempted requests), `pins`, `use` (how full pages are),
and `layout` for memory without paging. `prefix/` has the prefix cache and its two indexes (`index`,
`radix`), which look pages up by the keys in `keys`. `tiers/` has the host and the disk, and the
decision whether loading is faster (`costs`). `storage/` has the keys and values themselves, and the
order of copies between tiers.
"""

from minserve.memory.assemble import build_manager
from minserve.memory.events import MemoryEvents
from minserve.memory.group import PageGroup
from minserve.memory.keys import TokenBlocks, root_key
from minserve.memory.manager import KVManager
from minserve.memory.plan import GroupPlan, plan_blocks, plan_groups
from minserve.memory.pool import BlockPool, IntegrityError
from minserve.memory.prefix.index import HashIndex, IndexNode, Match, PrefixIndex
from minserve.memory.prefix.radix import RadixIndex
from minserve.memory.reuse import Found
from minserve.memory.storage.cache import KVCache
from minserve.memory.storage.exported import ExportedGroup, ExportedPages
from minserve.memory.storage.store import BlockStore, NoStore, PageStore
from minserve.memory.storage.transfers import TransferOrder
from minserve.memory.tiers.costs import ResumeCosts
from minserve.memory.tiers.disk import DiskTier
from minserve.memory.tiers.host import HostTier
from minserve.memory.use import MemoryUse

__all__ = [
    "BlockPool",
    "BlockStore",
    "DiskTier",
    "ExportedGroup",
    "ExportedPages",
    "Found",
    "GroupPlan",
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
    "PageGroup",
    "PageStore",
    "PrefixIndex",
    "RadixIndex",
    "ResumeCosts",
    "TokenBlocks",
    "TransferOrder",
    "build_manager",
    "plan_blocks",
    "plan_groups",
    "root_key",
]
