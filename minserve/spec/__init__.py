"""Data that describes a model and its caches.

A `ModelSpec` is everything the decoder needs to know about an architecture; Llama, Qwen2, Qwen3,
Gemma and Granite are values of it, not classes. Knows nothing about weights, files or devices.
"""

from minserve.spec.blocks import BlockSpec, HeadShape, LayerSpec, LinearShape, MixerSpec, Projection
from minserve.spec.caches import CacheGroup, CacheSpec, CacheTensor, Retention
from minserve.spec.model import ModelSpec
from minserve.spec.rope import DEFAULT_ROPE, RopeKind, RopeSpec
from minserve.spec.storage import UNQUANTIZED, Storage, StoragePlan, Unquantized

__all__ = [
    "DEFAULT_ROPE",
    "UNQUANTIZED",
    "BlockSpec",
    "CacheGroup",
    "CacheSpec",
    "CacheTensor",
    "HeadShape",
    "LayerSpec",
    "LinearShape",
    "MixerSpec",
    "ModelSpec",
    "Projection",
    "Retention",
    "RopeKind",
    "RopeSpec",
    "Storage",
    "StoragePlan",
    "Unquantized",
]
