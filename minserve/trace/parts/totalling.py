"""How a field of a step is totalled over a run; the field's metadata says it.

`num_running: int = field(metadata=peak("peak_running"))` makes `RunTotals.peak_running`. A field
without such metadata has no total.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass
from typing import Any, Literal

_KEY = "total"


@dataclass(frozen=True, slots=True)
class Total:
    """How a field is totalled, and under which name."""

    kind: Literal["sum", "peak"]
    name: str
    """The attribute of `RunTotals`; "" for the field's own name."""


def summed(name: str = "") -> Mapping[str, Any]:
    """Metadata of a field whose values are summed over steps."""
    return {_KEY: Total("sum", name)}


def peak(name: str = "") -> Mapping[str, Any]:
    """Metadata of a field whose largest value is kept."""
    return {_KEY: Total("peak", name)}


def total_of(item: Field[Any]) -> Total | None:
    """How a field is totalled; None if it has no total."""
    total = item.metadata.get(_KEY)
    return total if isinstance(total, Total) else None
