"""This machine in words and numbers that may be published: no host names, no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

# Instruction sets that decide how fast a CPU multiplies matrices, spelled as in /proc/cpuinfo.
_FLAGS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class GpuInfo:
    """One CUDA device."""

    name: str
    memory_bytes: int
    compute_capability: str
    multiprocessors: int
    driver: str


@dataclass(frozen=True)
class MachineInfo:
    """The machine a number was measured on."""

    cpu_model: str
    cpu_cores: int
    """Cores this process may use."""
    cpu_flags: tuple[str, ...]
    """The known instruction sets that the CPU has."""
    cache_bytes: tuple[tuple[str, int], ...]
    """Cache level ("L2") -> bytes of one such cache, if the system reports it."""
    memory_bytes: int | None
    os: str
    python: str
    torch_version: str
    threads: int
    """Torch's threads for one operator."""
    gpus: tuple[GpuInfo, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For reports and traces."""
        return asdict(self)

    def processor(self, device: str | torch.device = "cpu") -> str:
        """The name of the processor behind a torch device."""
        device = torch.device(device)
        return self.gpus[device.index or 0].name if device.type == "cuda" else self.cpu_model

    def __str__(self) -> str:
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 2**30:.0f} GiB"
        wide = [flag for flag in self.cpu_flags if flag.startswith(("avx512", "amx", "sve"))]
        lines = [
            f"{self.cpu_model}, {self.cpu_cores} cores{memory}; {' '.join(wide) or 'no AVX-512'}",
            f"{self.os}, Python {self.python}, torch {self.torch_version}, {self.threads} threads",
        ]
        lines += [
            f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, driver {gpu.driver}"
            for gpu in self.gpus
        ]
        return "\n".join(lines)


def describe_machine() -> MachineInfo:
    """This machine, as far as the system reports it. Unknown parts are None or empty, never
    guessed."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    present = set(flags.split())
    return MachineInfo(
        cpu_model=_cpu_model(),
        cpu_cores=_cores(),
        cpu_flags=tuple(flag for flag in _FLAGS if flag in present),
        cache_bytes=_caches(),
        memory_bytes=_memory_bytes(),
        os=platform.system(),
        python=platform.python_version(),
        torch_version=torch.__version__,
        threads=torch.get_num_threads(),
        gpus=_gpus(),
    )


# A machine does not change while a process runs, and calling nvidia-smi takes a second.
@cache
def _cpuinfo(name: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


@cache
def _cpu_model() -> str:
    model = _cpuinfo("model name")
    if not model and platform.system() == "Darwin":
        model = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    return model or platform.processor() or platform.machine() or "unknown CPU"


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


@cache
def _caches() -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind = (index / "type").read_text().strip()
            level = (index / "level").read_text().strip()
            size = (index / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}"] = int(size[:-1]) * 1024
    return tuple(sorted(found.items()))


@cache
def _gpus() -> tuple[GpuInfo, ...]:
    if not torch.cuda.is_available():
        return ()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = _output(query).splitlines()
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            GpuInfo(
                name=properties.name,
                memory_bytes=properties.total_memory,
                compute_capability=f"{properties.major}.{properties.minor}",
                multiprocessors=properties.multi_processor_count,
                driver=driver[0] if driver else "unknown",
            )
        )
    return tuple(gpus)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
