"""Attention over paged keys and values: the plan/attend interface and its backends."""

from minserve.attention.base import AttentionBackend, AttentionPlan, Caches, LayerCache
from minserve.attention.merge import merge_partials
from minserve.attention.paged import PagedAttention

__all__ = [
    "AttentionBackend",
    "AttentionPlan",
    "Caches",
    "LayerCache",
    "PagedAttention",
    "merge_partials",
]
