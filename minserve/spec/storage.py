"""How the weights of a model are stored, as far as counting their bytes goes."""

from __future__ import annotations

from typing import Protocol


class Storage(Protocol):
    """How a matrix is stored, as far as counting its bytes goes; a weight format has this."""

    @property
    def name(self) -> str:
        """Its name in configurations and reports."""
        ...

    def matrix_bytes(self, outputs: int, inputs: int, itemsize: int) -> int:
        """Bytes of the codes, scales and zero points of `[outputs, inputs]`; `itemsize` is the
        model's bytes per number."""
        ...


class StoragePlan(Protocol):
    """How each matrix of a model is stored."""

    def of(self, layer: int | None, projection: str) -> Storage:
        """The storage of a projection (`BlockSpec.projections`) of a layer; None: of the model's
        own "embedding" and "head", which share one if they are tied."""
        ...


class Unquantized:
    """The `StoragePlan` of a model whose matrices keep its own number format."""

    name = "dense"

    def of(self, layer: int | None, projection: str) -> Storage:
        """See `StoragePlan.of`."""
        return self

    def matrix_bytes(self, outputs: int, inputs: int, itemsize: int) -> int:
        """See `Storage.matrix_bytes`."""
        return outputs * inputs * itemsize


UNQUANTIZED = Unquantized()
