"""The floor: the least time that a traced run's counted work could have taken on this machine.

Every step's FLOPs and bytes divided by the measured ceilings, summed. The difference between a
run and its floor is what better kernels, less overhead and a better schedule together could save
at this batching.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from minserve.hardware import Ceilings, roofline
from minserve.trace import RunTrace


@dataclass(frozen=True)
class Floor:
    """A run compared with the limit of its machine."""

    floor_s: float
    """Sum over steps of the larger of compute and memory time."""
    compute_s: float
    memory_s: float
    measured_s: float
    """From the first step's start to the last step's end."""
    steps: int
    memory_bound_steps: int
    flops: int
    bytes: int
    limits: str
    disturbed: bool
    """True if other programs ran while the ceilings were measured."""

    @property
    def times_floor(self) -> float:
        """Measured time divided by the floor: 1 is perfect."""
        return self.measured_s / self.floor_s

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self) | {"times_floor": self.times_floor}

    def __str__(self) -> str:
        return (
            f"floor {self.floor_s:.3g} s (compute {self.compute_s:.3g}, memory "
            f"{self.memory_s:.3g}); measured {self.measured_s:.3g} s, {self.times_floor:.2f} "
            f"times the floor; {self.memory_bound_steps} of {self.steps} steps memory-bound"
            + ("; ceilings measured on a disturbed machine" if self.disturbed else "")
        )


def floor_of(trace: RunTrace, ceilings: Ceilings, dtype: str) -> Floor:
    """The floor of a whole run. Raises ValueError if the trace has no steps or lost some."""
    steps, totals = trace.steps, trace.totals
    if not steps or len(steps) != totals.steps:
        raise ValueError(
            f"a floor needs every step of the run, and the trace kept {len(steps)} of "
            f"{totals.steps}: raise trace.max_steps"
        )
    bounds = [roofline(step.work, ceilings, dtype) for step in steps]
    return Floor(
        floor_s=sum(bound.bound_s for bound in bounds),
        compute_s=sum(bound.compute_s for bound in bounds),
        memory_s=sum(bound.memory_s for bound in bounds),
        measured_s=totals.duration_s,
        steps=len(steps),
        memory_bound_steps=sum(bound.binds == "memory" for bound in bounds),
        flops=totals.flops,
        bytes=totals.bytes,
        limits=bounds[0].source,
        disturbed=ceilings.disturbed,
    )
