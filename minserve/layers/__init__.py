"""The parts that blocks are made of, as plain objects over `Ops`.

No `nn.Module`: a decode step at batch 1 spends tens of microseconds per layer, and module calls,
hooks and attribute look-ups would be a large part of it. `RMSNorm`, `Embedding` and the matrix in a
`Linear` are weights, which engines share. Knows nothing about files, pages or requests.
"""

from minserve.layers.context import Counters, ForwardContext
from minserve.layers.embedding import Embedding
from minserve.layers.linear import Linear
from minserve.layers.norm import RMSNorm
from minserve.layers.rotary import rotary_table

__all__ = [
    "Counters",
    "Embedding",
    "ForwardContext",
    "Linear",
    "RMSNorm",
    "rotary_table",
]
