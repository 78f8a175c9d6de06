"""Converts the counted work of a step to seconds on a modelled device.

`CostModel` divides the roofline of the work by an efficiency and adds a fixed overhead per
step; with efficiency 1 and no overhead it is a bound, not a prediction. `LaunchCost` adds the
host's launches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from minserve.hardware import Ceilings, DeviceSpec, roofline
from minserve.trace import StepWork
from minserve.virtual.transfers import HostLink


class StepCost(Protocol):
    """The cost of a step on some device."""

    @property
    def device(self) -> object:
        """The modelled device; its `name`, `memory_bytes` and `memory_bytes_per_s` are
        used if it has them."""
        ...

    @property
    def dtype(self) -> str:
        """The number format."""
        ...

    def step_s(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Seconds of a step with this work, over this many tokens of this many requests."""
        ...


@dataclass(frozen=True)
class CostModel:
    """The roofline of a step's work divided by an efficiency, plus an overhead per step."""

    device: DeviceSpec | Ceilings
    """A GPU from the table, or this machine as measured."""
    dtype: str = "bfloat16"
    efficiency: float = 1.0
    """Share of the roofline that is reached, above 0 and at most 1."""
    overhead_s: float = 0.0
    """Seconds per step for everything but arithmetic and traffic: launches, scheduling."""
    link: HostLink | None = None
    """How fast pages move between tiers; None: the defaults of `HostLink`."""

    def step_s(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Modelled seconds of a step with this work."""
        bound_s = roofline(work, self.device, self.dtype).bound_s
        return bound_s / self.efficiency + self.overhead_s

    def __post_init__(self) -> None:
        if not 0 < self.efficiency <= 1 or self.overhead_s < 0:
            raise ValueError(
                f"CostModel(efficiency={self.efficiency}, overhead_s={self.overhead_s}): expected "
                "an efficiency above 0 and at most 1, and an overhead of at least 0 seconds"
            )


@dataclass(frozen=True)
class LaunchCost(CostModel):
    """A `CostModel` whose host launches every operator separately, or a whole step as one graph if
    it captured one for exactly that many rows.

    The host runs ahead of the device, so a step takes as long as the slower of the two.
    """

    launches: int = 0
    """Operators of a step."""
    launch_s: float = 5e-6
    """Seconds of the host per launch: an assumption, because no data sheet has it."""
    captured: frozenset[int] = frozenset()
    """Numbers of rows for which there is a graph."""

    def step_s(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Modelled seconds of a step with this work; `num_tokens` counts padded rows too."""
        launches = 1 if num_tokens in self.captured else self.launches
        return max(super().step_s(work, num_tokens, num_requests), launches * self.launch_s)
