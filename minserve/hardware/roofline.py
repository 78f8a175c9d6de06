"""The roofline: the least time a step could take on a device (Williams et al., CACM 2009).

A bound, not a prediction: it assumes that arithmetic and memory traffic overlap perfectly, that
launches take no time, and that everything runs at the device's best rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minserve.hardware.ceilings import Ceilings
from minserve.hardware.devices import DeviceSpec
from minserve.trace import StepWork


@dataclass(frozen=True, slots=True)
class RooflineEstimate:
    """Least seconds for some counted work, split into arithmetic and memory traffic."""

    compute_s: float
    """All arithmetic at the best matrix-product rate."""
    memory_s: float
    """All traffic at the bandwidth of its working set."""
    flops_per_s: float
    weights_bytes_per_s: float
    """Bandwidth used for weights and KV cache."""
    source: str
    """The device whose limits were used, and whether they were measured or are
    from a data sheet."""

    @property
    def bound_s(self) -> float:
        """The larger of the two: no implementation is faster on this device."""
        return max(self.compute_s, self.memory_s)

    @property
    def binds(self) -> Literal["compute", "memory"]:
        """Which of the two is the bound."""
        return "compute" if self.compute_s >= self.memory_s else "memory"


def roofline(
    work: StepWork,
    limits: Ceilings | DeviceSpec,
    dtype: str,
    working_set_bytes: float | None = None,
) -> RooflineEstimate:
    """The bound for `work` (of one step) in number format `dtype`.

    `working_set_bytes` is the size of what the next step reads again, by default the step's weights
    and cached keys and values: if it fits into a cache, that cache's bandwidth is the ceiling.
    Activations live for one step and have their own working set. Raises ValueError if the limits
    have no figure for `dtype`.
    """
    resident = work.weight_bytes + work.kv_read_bytes + work.kv_write_bytes
    if isinstance(limits, DeviceSpec):
        if limits.memory_bytes_per_s is None:
            raise ValueError(f"{limits.name}: no sourced figure for the memory bandwidth")
        rate = limits.flops_per_s(dtype)
        bandwidth = activations = limits.memory_bytes_per_s
        source = f"{limits.name}, data sheet"
    else:
        rate = limits.flops_per_s(dtype)
        bandwidth = limits.bytes_per_s(working_set_bytes or resident)
        activations = limits.bytes_per_s(work.activation_bytes)
        source = f"{limits.processor}, {limits.threads} threads, measured"
    return RooflineEstimate(
        compute_s=work.flops / rate,
        memory_s=resident / bandwidth + work.activation_bytes / activations,
        flops_per_s=rate,
        weights_bytes_per_s=bandwidth,
        source=source,
    )
