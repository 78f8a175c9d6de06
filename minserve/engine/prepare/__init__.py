"""From a step's plan to its `ForwardBatch`: the only files that turn requests into tensors."""

from minserve.engine.prepare.builders import (
    BatchBuilder,
    Builder,
    BuiltBatch,
    PaddedBuilder,
    ShapeBuilder,
    batch_builder,
)

__all__ = [
    "BatchBuilder",
    "Builder",
    "BuiltBatch",
    "PaddedBuilder",
    "ShapeBuilder",
    "batch_builder",
]
