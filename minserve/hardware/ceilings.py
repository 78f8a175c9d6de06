"""The best rates that this machine reaches: bandwidth by working set, products by number format.

Measured once and kept on disk for the same processor, torch and number of threads, so that every
figure can be compared with the limit of the machine it was measured on. A ceiling is the fastest
round of the best operator found; an engine that exceeds it has a better operator.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from minserve.clock import WallClock
from minserve.files import cache_dir
from minserve.files.cache_dir import cache_directory
from minserve.files.json_types import build
from minserve.hardware import probes
from minserve.hardware.machine import describe_machine
from minserve.hardware.measure import Rate, best_rate, synchronize

VERSION = 3
MOST = 1e18
"""Bound on FLOP/s and on bytes in a file: more than any machine has."""

_MIB = 1 << 20
_QUIET_SHARE = 0.6
"""If the share of CPU time is at least this, the machine counts as quiet. Allocation between
measurements uses one thread only, so 1 is never reached."""


@dataclass(frozen=True)
class BandwidthPoint:
    """Bytes per second at one working set."""

    working_set_bytes: int
    read: Rate
    copy: Rate
    """Bytes read and written together."""


@dataclass(frozen=True)
class ProductPoint:
    """A product with a `[size, size]` weight in one number format."""

    dtype: str
    size: int
    rows: int
    rate: Rate
    """FLOP/s; for a matrix-vector product, bytes of the matrix per second."""


@dataclass(frozen=True)
class Ceilings:
    """Measured limits of one device with one number of threads."""

    processor: str
    device: str
    """"cpu" or "cuda"."""
    threads: int
    torch_version: str
    date: str
    quick: bool
    """Fewer sizes and fewer rounds: accurate to about ten percent on a quiet machine."""
    cpu_share: float | None
    """CPU time this process got during the measurement, over time and threads: near 1 on a
    quiet machine, whose threads compute or wait actively. None for a GPU, and if the system
    does not report it."""
    bandwidth: tuple[BandwidthPoint, ...]
    """By ascending working set."""
    matmul: tuple[ProductPoint, ...]
    matvec: tuple[ProductPoint, ...]

    @property
    def disturbed(self) -> bool:
        """True if other programs disturbed the measurement: this process did not get its cores, or
        a quarter of the points had a median below half of their best."""
        if self.cpu_share is not None and self.cpu_share < _QUIET_SHARE:
            return True
        rates = self._rates()
        return 4 * sum(rate.median < rate.per_s / 2 for rate in rates) >= len(rates)

    def _rates(self) -> list[Rate]:
        rates = [rate for point in self.bandwidth for rate in (point.read, point.copy)]
        return rates + [point.rate for point in (*self.matmul, *self.matvec)]

    def bytes_per_s(self, working_set_bytes: float) -> float:
        """Read bandwidth for data of this size that is read again and again.

        Between measured sizes it is interpolated over the logarithm of the size; beyond them it is
        the value of the nearest size.
        """
        points = self.bandwidth
        if working_set_bytes <= points[0].working_set_bytes:
            return points[0].read.per_s
        for low, high in itertools.pairwise(points):
            if working_set_bytes <= high.working_set_bytes:
                span = math.log(high.working_set_bytes / low.working_set_bytes)
                fraction = math.log(working_set_bytes / low.working_set_bytes) / span
                return low.read.per_s + fraction * (high.read.per_s - low.read.per_s)
        return points[-1].read.per_s

    def flops_per_s(self, dtype: str) -> float:
        """The best matrix product found in this number format, any size.

        Raises ValueError for a format that was not measured.
        """
        rates = [point.rate.per_s for point in self.matmul if point.dtype == dtype]
        if not rates:
            known = ", ".join(sorted({point.dtype for point in self.matmul}))
            raise ValueError(
                f"no ceiling for {dtype!r} on {self.processor}: measured are {known}; call "
                f"measure_ceilings(dtypes=[{dtype!r}])"
            )
        return max(rates)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Ceilings:
        """The inverse of `to_dict`. Raises ValueError with a sentence for anything else, and for
        numbers that no measurement gives."""
        found = build(cls, data, "ceilings")
        sizes = [point.working_set_bytes for point in found.bandwidth]
        if not sizes or sizes != sorted(set(sizes)) or not 0 < sizes[0] <= sizes[-1] < MOST:
            raise ValueError("ceilings.bandwidth is not by ascending working set")
        for rate in found._rates():
            if not 0 < rate.low <= rate.median <= rate.per_s < MOST or rate.rounds < 1:
                raise ValueError(f"ceilings: {rate} is no rate that was measured")
        if found.threads < 1 or not 0 <= (found.cpu_share or 0) < MOST:
            raise ValueError("ceilings.threads and ceilings.cpu_share are not of a process")
        return found


def measure_ceilings(
    device: str | torch.device = "cpu",
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    quick: bool = True,
    budget_s: float | None = None,
) -> Ceilings:
    """Measure this machine now: about 5 s if quick, half a minute otherwise. Nothing
    else should run.

    Uses torch's current number of threads. `budget_s` replaces the time spent on rounds.
    """
    target = torch.device(device)
    on_gpu = target.type == "cuda"
    if on_gpu and target.index is None:
        target = torch.device("cuda", torch.cuda.current_device())
    sizes, products, vectors = _plan(quick, on_gpu)
    measurements = 2 * len(sizes) + len(dtypes) * (len(products) + len(vectors))
    share = (budget_s if budget_s is not None else (2.5 if quick else 25.0)) / measurements
    bandwidth, matmul, matvec = [], [], []
    clock, before = WallClock(), _cpu_seconds()
    start = clock.now()
    with torch.inference_mode():
        for mib in sizes:
            size_bytes = int(mib * _MIB)
            read = best_rate(*probes.reads(size_bytes, target), target, share)
            copy = best_rate(*probes.copies(size_bytes, target), target, share)
            bandwidth.append(BandwidthPoint(size_bytes, read, copy))
        for name in dtypes:
            dtype = getattr(torch, name)
            for rows, size in products:
                rate = best_rate(*probes.matrix_products(rows, size, dtype, target), target, share)
                matmul.append(ProductPoint(name, size, rows, rate))
            for size in vectors:
                candidates, work = probes.matrix_vector_products(size, dtype, target)
                rate = best_rate(candidates, work, target, share)
                matvec.append(ProductPoint(name, size, 1, rate))
    synchronize(target)
    elapsed = clock.now() - start
    after = None if on_gpu else _cpu_seconds()
    machine = describe_machine()
    return Ceilings(
        processor=machine.processor(target),
        device=target.type,
        threads=machine.threads,
        torch_version=machine.torch_version,
        date=datetime.now(UTC).date().isoformat(),
        quick=quick,
        cpu_share=(
            None
            if after is None or before is None
            else (after - before) / elapsed / machine.threads
        ),
        bandwidth=tuple(bandwidth),
        matmul=tuple(matmul),
        matvec=tuple(matvec),
    )


def _plan(quick: bool, on_gpu: bool) -> tuple[list[float], list[tuple[int, int]], list[int]]:
    """Working sets in MiB, (rows, size) of products, sizes of matrix-vector products."""
    # Working sets around the sizes of L1, L2, L3 (a GPU's L2) and memory on today's machines.
    if on_gpu:
        sizes = [4.0, 16, 64, 1024] if quick else [2.0, 4, 8, 16, 32, 64, 128, 512, 2048]
        squares, skinny = ([8192] if quick else [2048, 4096, 8192]), (64, 8192)
    else:
        sizes = [0.5, 2, 8, 32, 128] if quick else [0.125, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 512]
        squares, skinny = ([1024] if quick else [256, 512, 1024, 2048]), (64, 1024)
    vectors = [1024, 4096] if quick else [256, 512, 1024, 2048, 4096, 8192]
    return sizes, [*((size, size) for size in squares), skinny], vectors


def machine_ceilings(
    device: str | torch.device = "cpu",
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    quick: bool = True,
    refresh: bool = False,
) -> Ceilings:
    """This machine's ceilings: from disk if the same machine was measured before,
    otherwise measured now.

    A thorough measurement on disk also serves a quick request. A disturbed measurement is not
    written to disk; like one that cannot be written, it is kept until the process ends.
    """
    kept = None if refresh else kept_ceilings(device, dtypes, quick=quick)
    if kept is not None:
        return kept
    measured = measure_ceilings(device, dtypes=dtypes, quick=quick)
    path = cache_path(device, dtypes, quick=quick)
    _this_process.pop(path, None)
    content = {"version": VERSION} | measured.to_dict()
    if measured.disturbed or not cache_dir.write(path, content, "The ceilings of this machine"):
        _this_process[path] = measured
    return measured


_this_process: dict[Path, Ceilings] = {}
"""Measurements that are not on disk. State of the process: the machine is the same for all engines,
and measuring it takes seconds."""


def kept_ceilings(
    device: str | torch.device = "cpu",
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    *,
    quick: bool = True,
) -> Ceilings | None:
    """`machine_ceilings` if that needs no measurement, else None."""
    for thorough in (True, False) if quick else (True,):
        path = cache_path(device, dtypes, quick=not thorough)
        found = _this_process.get(path) or cache_dir.read(
            path, _of_this_version, "the ceilings of this machine"
        )
        if found is not None:
            return found
    return None


def _of_this_version(data: Any) -> Ceilings:
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise ValueError("it is of another version of minserve")
    return Ceilings.from_dict({name: data[name] for name in data if name != "version"})


def _cpu_seconds() -> float | None:
    """CPU time of all threads of this process so far."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cache_path(device: str | torch.device, dtypes: Sequence[str], *, quick: bool) -> Path:
    """The file for this processor, torch version, thread count and number formats."""
    machine = describe_machine()
    key = "|".join(
        [
            machine.processor(device),
            str(machine.cpu_cores),
            machine.torch_version,
            str(machine.threads),
            torch.device(device).type,
            *sorted(dtypes),
        ]
    )
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_directory() / f"ceilings-{'quick' if quick else 'full'}-{digest}.json"
