"""The parts of a decoder layer, as plain objects over `Ops`.

No `nn.Module`: a decode step at batch 1 spends tens of microseconds per layer, and module calls,
hooks and attribute look-ups would be a large part of it. Weight holders (`Linear`, `RMSNorm`,
`Embedding`) know no operators and can be shared by engines; mixers and feed-forwards bind them to
one engine's `Ops`. Knows nothing about files, pages or requests.
"""

from minserve.layers.embedding import Embedding
from minserve.layers.feed_forward import GatedFeedForward
from minserve.layers.linear import (
    DenseFormat,
    DenseWeight,
    Linear,
    LinearShape,
    LinearWeight,
    PackedFormat,
    PackedWeight,
    ShardDim,
    TableWeight,
    TensorSource,
    WeightFormat,
)
from minserve.layers.mixer import AttentionMixer
from minserve.layers.norm import RMSNorm
from minserve.layers.rotary import rotary_table

__all__ = [
    "AttentionMixer",
    "DenseFormat",
    "DenseWeight",
    "Embedding",
    "GatedFeedForward",
    "Linear",
    "LinearShape",
    "LinearWeight",
    "PackedFormat",
    "PackedWeight",
    "RMSNorm",
    "ShardDim",
    "TableWeight",
    "TensorSource",
    "WeightFormat",
    "rotary_table",
]
