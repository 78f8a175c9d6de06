"""Which matrix of a model is stored in which format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from minserve.quantization.formats.base import WeightFormat
from minserve.quantization.formats.dense import DENSE
from minserve.spec import ModelSpec


@dataclass(frozen=True)
class FormatPlan:
    """A `StoragePlan` of weight formats: one for the projections of all layers, one for embedding
    and head, and exceptions."""

    layers: WeightFormat = DENSE
    head: WeightFormat = DENSE
    """Of the head; a tied embedding is the same matrix, and another stays dense."""
    exceptions: Mapping[tuple[int, str], WeightFormat] = field(default_factory=dict)
    """By layer and projection (`BlockSpec.projections`)."""

    def __post_init__(self) -> None:
        # A copy: the plan is a key of `models.WeightStore`.
        object.__setattr__(self, "exceptions", dict(self.exceptions))

    def check(self, spec: ModelSpec) -> None:
        """Raise ValueError for an exception that names no matrix of this model."""
        for layer, projection in self.exceptions:
            if not 0 <= layer < spec.num_layers:
                raise ValueError(
                    f"FormatPlan.exceptions has a format for layer {layer} of a model of "
                    f"{spec.num_layers} layers: count them from 0"
                )
            shared = spec.layers[layer].weights_of
            if shared is not None:
                raise ValueError(
                    f"FormatPlan.exceptions has a format for layer {layer}, which uses the weights "
                    f"of layer {shared}: name that one"
                )
            known = spec.layers[layer].projections(spec.hidden_size)
            if projection not in known:
                raise ValueError(
                    f"FormatPlan.exceptions has a format for {projection!r} of layer {layer}: "
                    f"expected one of {', '.join(known)}"
                )

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
