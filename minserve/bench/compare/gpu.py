"""The device of the virtual clock: one of the table, or three numbers of the reader's own."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.bench.compare.errors import SetupError
from minserve.hardware import DEVICES, DeviceSpec
from minserve.virtual import CostModel
from minserve.virtual.transfers import HostLink

OWN = "own"
DTYPES = ("bfloat16", "float16", "float32")
_LINK = HostLink()
BOUNDS: dict[str, tuple[float, float]] = {
    "flops_per_s": (1e9, 1e17),
    "bytes_per_s": (1e8, 1e15),
    "memory_bytes": (1e7, 1e14),
    "efficiency": (0.01, 1.0),
    "overhead_s": (0.0, 1.0),
    "link_bytes_per_s": (1e6, 1e13),
    "link_latency_s": (0.0, 1.0),
    "disk_bytes_per_s": (1e6, 1e13),
}


@dataclass(frozen=True)
class Gpu:
    """What the virtual clock charges for. Its first three numbers are read where it is "own"."""

    name: str = "H100 SXM"
    flops_per_s: float = 1e14
    bytes_per_s: float = 1e12
    memory_bytes: int = 24 * 10**9
    dtype: str = "bfloat16"
    efficiency: float = 0.5
    """Share of the roofline that is reached."""
    overhead_s: float = 2e-4
    """Seconds per step for everything but arithmetic and traffic."""
    link_bytes_per_s: float = _LINK.bytes_per_s
    link_latency_s: float = _LINK.latency_s
    disk_bytes_per_s: float = _LINK.disk_bytes_per_s

    def __post_init__(self) -> None:
        if self.name != OWN and self.name not in DEVICES:
            raise SetupError(
                f"there is no GPU {self.name[:40]!r} in the table: choose {OWN!r}, or one of "
                f"{', '.join(DEVICES)}"
            )
        if self.dtype not in DTYPES:
            raise SetupError(f"gpu dtype={self.dtype[:40]!r}: expected one of {', '.join(DTYPES)}")
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SetupError(f"gpu {name}={value:g}: expected {low:g} to {high:g}")

    @property
    def device(self) -> DeviceSpec:
        """The data sheet, or one made of the three numbers."""
        if self.name != OWN:
            return DEVICES[self.name]
        return DeviceSpec(
            name="GPU of your own",
            vendor="",
            architecture="",
            memory_bytes=self.memory_bytes,
            memory_bytes_per_s=self.bytes_per_s,
            dense_flops=dict.fromkeys(DTYPES, self.flops_per_s),
            interconnect="",
            interconnect_bytes_per_s=None,
            tdp_watts=None,
            source="three numbers you chose",
        )

    def cost(self) -> CostModel:
        """The cost model. Raises SetupError for a device without the figures it takes."""
        device = self.device
        if device.memory_bytes_per_s is None or self.dtype not in device.dense_flops:
            known = ", ".join(device.dense_flops) or "no number format"
            raise SetupError(
                f"the {device.name} has no sourced figure for {self.dtype} (it has {known}): "
                "choose another number format or GPU"
            )
        link = HostLink(self.link_bytes_per_s, self.link_latency_s, self.disk_bytes_per_s)
        return CostModel(device, self.dtype, self.efficiency, self.overhead_s, link)
