"""Weight formats: how a matrix is stored. Each owns its codes, scales and zero points."""

from minserve.quantization.formats.base import (
    ShardDim,
    TensorSource,
    WeightFormat,
    load_matrix,
    shard_matrix,
)
from minserve.quantization.formats.dense import DENSE, DenseFormat
from minserve.quantization.formats.int8 import Int8Format
from minserve.quantization.formats.plan import DENSE_PLAN, FormatPlan

FORMATS: dict[str, WeightFormat] = {each.name: each for each in (DENSE, Int8Format())}
"""By `EngineConfig.quantization.weight_format`."""

__all__ = [
    "DENSE",
    "DENSE_PLAN",
    "FORMATS",
    "DenseFormat",
    "FormatPlan",
    "Int8Format",
    "ShardDim",
    "TensorSource",
    "WeightFormat",
    "load_matrix",
    "shard_matrix",
]
