"""The bytes a Triton kernel moves, counted without a GPU, in Triton's interpreter.

Two counts. *Requested* bytes are those of every unmasked lane: the kernel's requests to the first
cache. *Memory* bytes are the 32-byte sectors a launch touches, each once per tensor and direction:
the traffic of memory if the caches keep everything that a launch reads again, such as the weight of
a norm. No data are assumed to stay in a cache between two launches.

`TRITON_INTERPRET=1` must be set before Triton is imported; `python -m
minserve.kernels.triton.analysis.traffic` sets it and prints every kernel's count at a small shape.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime import interpreter

from minserve.kernels.cases import PROCESSORS, cases
from minserve.kernels.counts.launches import LaunchCounter, Total
from minserve.kernels.counts.least import NOTHING, Bytes
from minserve.kernels.reference.ops import TorchOps

SECTOR_BYTES = 32
"""The smallest unit that NVIDIA's caches move."""


@dataclass(frozen=True)
class TensorTraffic:
    """The bytes that one launch moved for one tensor."""

    requested: Bytes
    memory: Bytes


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    kernel: str
    programs: int
    tensors: Mapping[str, TensorTraffic]
    """By argument; arguments that share storage are one entry, "k, v"."""

    @property
    def requested(self) -> Bytes:
        """Requested bytes of all tensors."""
        return _sum(each.requested for each in self.tensors.values())

    @property
    def memory(self) -> Bytes:
        """Memory bytes of all tensors."""
        return _sum(each.memory for each in self.tensors.values())


def _sum(parts: Iterator[Bytes]) -> Bytes:
    total = NOTHING
    for part in parts:
        total = total.plus(part)
    return total


@dataclass
class Traffic:
    """Launches inside a `watch` block, in order."""

    launches: list[Launch] = field(default_factory=list)

    @property
    def requested(self) -> Bytes:
        """Requested bytes of all launches."""
        return _sum(launch.requested for launch in self.launches)

    @property
    def memory(self) -> Bytes:
        """Memory bytes of all launches."""
        return _sum(launch.memory for launch in self.launches)


class _Watcher:
    """Observes one launch: assigns each access to the argument whose storage contains it."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        spans: dict[tuple[int, int], list[str]] = {}
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                start = storage.data_ptr()
                spans.setdefault((start, start + storage.nbytes()), []).append(name)
        ordered = sorted(spans)
        self._names = [", ".join(spans[span]) for span in ordered]
        self._starts = np.array([start for start, _ in ordered], np.uint64)
        self._ends = np.array([end for _, end in ordered], np.uint64)
        self._requested = np.zeros((len(ordered), 2), np.int64)
        self._sectors: list[list[np.ndarray]] = [[], []]

    def saw(self, pointers: Any, mask: Any, written: bool) -> None:
        """Record one access of one program. Raises IndexError for an address outside all
        arguments."""
        addresses = pointers.data[np.broadcast_to(mask, pointers.data.shape)].ravel()
        if not addresses.size:
            return
        addresses = addresses.astype(np.uint64)
        itemsize = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        last = addresses + np.uint64(itemsize - 1)
        owner = np.searchsorted(self._starts, addresses, side="right") - 1
        if (owner < 0).any() or (last >= self._ends[owner]).any():
            what = "writes" if written else "reads"
            raise IndexError(f"the kernel {what} outside all of its arguments")
        counts = np.bincount(owner, minlength=len(self._names))
        self._requested[:, int(written)] += counts * itemsize
        both = np.concatenate([addresses, last]) // np.uint64(SECTOR_BYTES)
        self._sectors[written].append(np.unique(both))

    def tensors(self) -> dict[str, TensorTraffic]:
        """The launch's counts by argument."""
        memory = [self._memory(found) for found in self._sectors]
        return {
            name: TensorTraffic(
                Bytes(*self._requested[index].tolist()), Bytes(memory[0][index], memory[1][index])
            )
            for index, name in enumerate(self._names)
        }

    def _memory(self, found: list[np.ndarray]) -> list[int]:
        if not found:
            return [0] * len(self._names)
        sectors = np.unique(np.concatenate(found))
        # A tensor begins at a sector boundary: allocators align to more than a sector.
        firsts = self._starts // np.uint64(SECTOR_BYTES)
        owner = np.searchsorted(firsts, sectors, side="right") - 1
        counts = np.bincount(owner, minlength=len(self._names))
        return [int(count) * SECTOR_BYTES for count in counts]


@contextmanager
def watch() -> Iterator[Traffic]:
    """Count the kernels that are launched inside the block. Not for two threads at once.

    Raises RuntimeError if kernels are compiled instead of interpreted.
    """
    if not interpreter_runs():
        raise RuntimeError(
            "bytes are counted in Triton's interpreter, and here kernels are compiled: set "
            "TRITON_INTERPRET=1 before Python starts"
        )
    traffic = Traffic()
    current: list[_Watcher] = []
    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    methods = ("create_masked_load", "create_masked_store", "create_atomic_rmw",
               "create_atomic_cas")  # fmt: skip
    real = {name: getattr(builder, name) for name in methods}
    launch = executor.__call__

    # Unmasked loads and stores, block pointers and descriptors all call the masked ones.
    def load(ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        current[-1].saw(ptrs, mask.data, False)
        return real["create_masked_load"](ptrs, mask, *rest, **named)

    def store(ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        current[-1].saw(ptrs, mask.data, True)
        return real["create_masked_store"](ptrs, value, mask, *rest, **named)

    def modify(op: Any, ptr: Any, value: Any, mask: Any, *rest: Any) -> Any:
        for written in (False, True):
            current[-1].saw(ptr, mask.data, written)
        return real["create_atomic_rmw"](op, ptr, value, mask, *rest)

    def swap(ptr: Any, *rest: Any) -> Any:
        for written in (False, True):
            current[-1].saw(ptr, True, written)
        return real["create_atomic_cas"](ptr, *rest)

    def launched(self: Any, *args: Any, **named: Any) -> Any:
        known = {name: value for name, value in named.items() if name in self.arg_names}
        arguments = inspect.getcallargs(self.fn, *args, **known)
        current.append(_Watcher(arguments))
        try:
            with _disable_current_modes():  # The interpreter's own operators do not count.
                result = launch(self, *args, **named)
        finally:
            watcher = current.pop()
        grid = self.grid(arguments) if callable(self.grid) else self.grid
        traffic.launches.append(Launch(self.fn.__name__, int(np.prod(grid)), watcher.tensors()))
        return result

    replaced = dict(zip(methods, (load, store, modify, swap), strict=True))
    for name, method in replaced.items():
        setattr(builder, name, method)
    executor.__call__ = launched
    try:
        yield traffic
    finally:
        executor.__call__ = launch
        for name in methods:
            delattr(builder, name)


def interpreter_runs() -> bool:
    """Whether kernels of this process are interpreted."""
    from minserve.kernels.triton.norm import rms_norm_kernel

    return isinstance(rms_norm_kernel, interpreter.InterpretedFunction)


def measure() -> dict[str, dict[str, int | float]]:
    """Operator -> its launches and bytes in float16, fused and as torch composes it."""
    from minserve.kernels.triton.ops import TritonOps

    ops, found = TritonOps(PROCESSORS), {}
    for case, shapes in zip(cases(), cases(device="meta"), strict=True):
        with watch() as traffic:
            case.run(ops)
        with LaunchCounter("meta") as counter, torch.inference_mode():
            shapes.run(TorchOps(use_sdpa=False))
        unfused = Total.of(counter.launches)
        found[case.name] = {
            "least bytes": case.least.total,
            "launches": len(traffic.launches),
            "programs": sum(launch.programs for launch in traffic.launches),
            "memory bytes": traffic.memory.total,
            "requested bytes": traffic.requested.total,
            "memory over least": round(traffic.memory.total / case.least.total, 3),
            "unfused launches": unfused.launches,
            "unfused bytes": unfused.moved.total,
            "unfused over least": round(unfused.moved.total / case.least.total, 3),
        }
    return found


def main() -> int:
    """Print `measure()` as JSON, in a process that interprets."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        command = [sys.executable, "-m", "minserve.kernels.triton.analysis.traffic"]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        return subprocess.run(command, env=environment, check=False).returncode
    sys.stdout.write(json.dumps(measure(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
