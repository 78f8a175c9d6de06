"""Which matrix of a model is stored in which format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from minserve.quantization.formats.base import WeightFormat
from minserve.quantization.formats.dense import DENSE


@dataclass(frozen=True)
class FormatPlan:
    """A `StoragePlan` of weight formats: one for the projections of all layers, one for embedding
    and head, and exceptions."""

    layers: WeightFormat = DENSE
    head: WeightFormat = DENSE
    """Of the head; a tied embedding is the same matrix, and another stays dense."""
    exceptions: Mapping[tuple[int, str], WeightFormat] = field(default_factory=dict)
    """By layer and projection (`BlockSpec.projections`)."""

    def of(self, layer: int | None, projection: str) -> WeightFormat:
        """See `StoragePlan.of`."""
        if layer is None:
            return self.head if projection == "head" else DENSE
        return self.exceptions.get((layer, projection), self.layers)

    @property
    def formats(self) -> frozenset[WeightFormat]:
        """All formats in it."""
        return frozenset((DENSE, self.layers, self.head, *self.exceptions.values()))

    def __hash__(self) -> int:
        return hash((self.layers, self.head, frozenset(self.exceptions.items())))


DENSE_PLAN = FormatPlan()
"""Every matrix in the model's own number format."""
