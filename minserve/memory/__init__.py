"""Memory management (Miao et al., section 4.2.3): who owns which page of the KV cache."""

from minserve.memory.cache import KVCache
from minserve.memory.manager import KVManager, MemoryUse
from minserve.memory.pool import BlockPool, IntegrityError

__all__ = ["BlockPool", "IntegrityError", "KVCache", "KVManager", "MemoryUse"]
