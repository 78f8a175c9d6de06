"""GPUs by name; every figure is from a vendor's data sheet or architecture white paper.

FLOP/s are dense (half of what vendors print "with sparsity"), for products accumulated in float32,
at boost clock. A figure without a source is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_GB, _TFLOPS = 10**9, 1e12


@dataclass(frozen=True)
class DeviceSpec:
    """The figures that a vendor publishes for one device."""

    name: str
    vendor: str
    architecture: str
    memory_bytes: int
    """As printed: decimal gigabytes."""
    memory_bytes_per_s: float | None
    dense_flops: Mapping[str, float]
    """Number format -> FLOP/s. float32 is without tensor cores; tf32 is the tensor cores' format
    for float32 inputs."""
    interconnect: str
    interconnect_bytes_per_s: float | None
    """Both directions together, as vendors print it."""
    tdp_watts: int | None
    source: str
    """Titles of the documents that the figures are from."""
    aliases: tuple[str, ...] = ()
    """Substrings of the name the driver reports, lower case."""
    processors: int | None = None
    """Streaming multiprocessors (AMD: compute units): at least this many programs run at once."""

    def flops_per_s(self, dtype: str) -> float:
        """Dense FLOP/s in a number format. Raises ValueError if there is no figure with a
        source."""
        try:
            return self.dense_flops[dtype]
        except KeyError:
            known = ", ".join(self.dense_flops) or "none"
            raise ValueError(
                f"{self.name}: no sourced figure for {dtype!r} products; known: {known}"
            ) from None


def _spec(
    name: str,
    architecture: str,
    memory_gb: int,
    bandwidth_gb_s: float | None,
    tflops: Mapping[str, float],
    link: tuple[str, float | None],
    watts: int | None,
    source: str,
    aliases: tuple[str, ...],
    vendor: str = "NVIDIA",
) -> DeviceSpec:
    return DeviceSpec(
        name=name,
        vendor=vendor,
        architecture=architecture,
        memory_bytes=memory_gb * _GB,
        memory_bytes_per_s=None if bandwidth_gb_s is None else bandwidth_gb_s * _GB,
        dense_flops={dtype: value * _TFLOPS for dtype, value in tflops.items()},
        interconnect=link[0],
        interconnect_bytes_per_s=None if link[1] is None else link[1] * _GB,
        tdp_watts=watts,
        source=source,
        aliases=aliases,
        processors=_PROCESSORS.get(name),
    )


# From the same documents; no figure if they do not print it.
_PROCESSORS = {
    "T4": 40,
    "RTX 3090": 82,
    "A100 40GB SXM": 108,
    "A100 80GB SXM": 108,
    "A100 80GB PCIe": 108,
    "RTX 4090": 128,
    "H100 PCIe": 114,
    "H100 SXM": 132,
    "H200": 132,
    "MI300X": 304,
}


def _tensor(
    half: float, float32: float, tf32: float, float8: float | None = None
) -> dict[str, float]:
    rates = {"float16": half, "bfloat16": half, "tf32": tf32, "float32": float32}
    return rates if float8 is None else rates | {"float8": float8}


_A100 = "NVIDIA A100 Tensor Core GPU data sheet; NVIDIA A100 Tensor Core GPU Architecture"
_H100 = "NVIDIA H100 Tensor Core GPU data sheet; NVIDIA H100 Tensor Core GPU Architecture"
_PCIE3, _PCIE4 = ("PCIe 3.0 x16", 32.0), ("PCIe 4.0 x16", 64.0)

DEVICES: dict[str, DeviceSpec] = {
    spec.name: spec
    for spec in (
        _spec("T4", "Turing", 16, 320, {"float16": 65, "float32": 8.1}, _PCIE3, 70,
              "NVIDIA T4 Tensor Core GPU data sheet and product brief", ("tesla t4", "nvidia t4")),
        _spec("RTX 3090", "Ampere", 24, 936, _tensor(71, 35.6, 35.6), ("NVLink 3", 112.5), 350,
              "NVIDIA Ampere GA102 GPU Architecture, appendix A", ("rtx 3090",)),
        _spec("A10", "Ampere", 24, 600, _tensor(125, 31.2, 62.5), _PCIE4, 150,
              "NVIDIA A10 Tensor Core GPU data sheet", ("nvidia a10",)),
        # Its published product rates contradict each other, so none are listed here.
        _spec("A10G", "Ampere", 24, 600, {}, _PCIE4, None,
              "Amazon EC2 G5 instance documentation (memory and bandwidth only)",
              ("nvidia a10g", "a10g")),
        _spec("A100 40GB SXM", "Ampere", 40, 1555, _tensor(312, 19.5, 156), ("NVLink 3", 600), 400,
              _A100, ("a100-sxm4-40gb",)),
        _spec("A100 80GB SXM", "Ampere", 80, 2039, _tensor(312, 19.5, 156), ("NVLink 3", 600), 400,
              _A100, ("a100-sxm4-80gb",)),
        _spec("A100 80GB PCIe", "Ampere", 80, 1935, _tensor(312, 19.5, 156), ("NVLink 3", 600),
              300, _A100, ("a100 80gb pcie",)),
        _spec("L4", "Ada", 24, 300, _tensor(121, 30.3, 60, 242.5), _PCIE4, 72,
              "NVIDIA L4 Tensor Core GPU data sheet (printed with sparsity, halved)",
              ("nvidia l4",)),
        _spec("RTX 4090", "Ada", 24, 1008, _tensor(165.2, 82.6, 82.6, 330.3), _PCIE4, 450,
              "NVIDIA Ada GPU Architecture, appendix A", ("rtx 4090",)),
        _spec("H100 PCIe", "Hopper", 80, 2000, _tensor(756, 51, 378, 1513), ("NVLink 4", 600), 350,
              _H100, ("h100 pcie",)),
        _spec("H100 SXM", "Hopper", 80, 3350, _tensor(989.4, 66.9, 494.7, 1978.9),
              ("NVLink 4", 900), 700, _H100, ("h100 80gb hbm3", "h100 sxm")),
        _spec("H200", "Hopper", 141, 4800, _tensor(989.4, 66.9, 494.7, 1978.9),
              ("NVLink 4", 900), 700, "NVIDIA H200 Tensor Core GPU data sheet; products as H100",
              ("h200",)),
        _spec("B200", "Blackwell", 180, 8000, _tensor(2250, 80, 1100, 4500), ("NVLink 5", 1800),
              1000, "NVIDIA Blackwell Architecture Technical Brief (HGX B200); DGX B200 data sheet",
              ("b200",)),
        _spec("MI300X", "CDNA 3", 192, 5300,
              {"float16": 1307.4, "bfloat16": 1307.4, "tf32": 653.7, "float32": 163.4,
               "float8": 2614.9},
              ("Infinity Fabric, 7 links", 896), 750,
              "AMD Instinct MI300X Accelerator data sheet; AMD CDNA 3 Architecture",
              ("mi300x",), "AMD"),
    )
}  # fmt: skip


def find_device(name: str) -> DeviceSpec | None:
    """The table's entry for a name as the driver (or a person) writes it; None if there is none.

    The longest alias wins, so that "NVIDIA A10G" is not taken for an A10.
    """
    wanted = " ".join(name.lower().split())
    for spec in DEVICES.values():
        if spec.name.lower() == wanted:
            return spec
    hits = [
        (len(alias), spec) for spec in DEVICES.values() for alias in spec.aliases if alias in wanted
    ]
    return max(hits, key=lambda hit: hit[0])[1] if hits else None
