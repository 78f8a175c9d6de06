"""The setting of a part of the suite: the device, its time, its file, results of earlier parts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from minserve.bench.gpu.record import Record, load, share
from minserve.bench.gpu.timing import Budget
from minserve.clock import Clock
from minserve.config import EngineConfig
from minserve.hardware import Ceilings, find_device, measure_ceilings
from minserve.spec import ModelSpec

_Result = TypeVar("_Result")

CEILINGS = "ceilings"
"""The part that measures the device's best rates."""
FASTEST: dict[str, Any] = {"kernels.cuda_graphs": True, "scheduling.async_scheduling": True}
"""The switches for a GPU. Tuned tiles are added if they were found before: `is_tuned`."""


@dataclass
class Setting:
    """The setting in which one part runs."""

    device: torch.device
    dry_run: bool
    """Toy sizes on a CPU: to check that everything runs, never to quote."""
    clock: Clock
    budget: Budget
    record: Record
    folder: Path
    """The folder of the parts' files."""

    @property
    def dtype(self) -> str:
        """The number format used for serving."""
        return "float32" if self.dry_run else "bfloat16"

    def pick(self, real: _Result, toy: _Result) -> _Result:
        """A size: the real one, or the toy one in a dry run."""
        return toy if self.dry_run else real

    def ceilings(self) -> Ceilings:
        """The device's ceilings from this run; measured now, with a note, if the part `ceilings`
        was not run on this device and software."""
        found = load(self.folder / f"{CEILINGS}.json")
        mine = self.record.data
        same = found is not None and all(found[k] == mine[k] for k in ("device", "versions"))
        if found is not None and same and found["status"] == "done":
            with suppress(ValueError, KeyError, IndexError, TypeError):  # Damaged: measure again.
                return Ceilings.from_dict(found["rows"][0]["ceilings"])
        self.record.note("ceilings measured here: the part `ceilings` was not run before")
        return measure(self)

    def repeat(self, call: Callable[[], _Result], rounds: int, what: str) -> list[_Result]:
        """Call `rounds` times, at least once; stops when the part's time is over, and notes it."""
        results: list[_Result] = []
        longest = 0.0
        for number in range(rounds):
            # Do not begin a round that would not end in time.
            if results and self.budget.left_s < longest:
                self.record.note(f"{what}: {number} of {rounds} rounds, the part's time was over")
                break
            start = self.clock.now()
            results.append(call())
            longest = max(longest, self.clock.now() - start)
        return results

    def take_turns(
        self, sides: Mapping[str, Callable[[], _Result]], rounds: int, what: str
    ) -> dict[str, list[_Result]]:
        """Rounds in which every side runs once, in rotating order; as many as there is time for."""
        results: dict[str, list[_Result]] = {name: [] for name in sides}
        order = list(sides)

        def one_round() -> None:
            for name in order:
                results[name].append(sides[name]())
            order.reverse()

        self.repeat(one_round, rounds, what)
        return results

    def time_for(self, what: str, seconds: float) -> bool:
        """True if this many seconds are left; otherwise `what` is recorded as not run."""
        if self.dry_run or self.budget.left_s >= seconds:
            return True
        self.record.skip(f"{what}: {self.budget.left_s:.0f} s were left of the part's time")
        return False


def measure(setting: Setting) -> Ceilings:
    """The device's bandwidth and matrix rate, now."""
    return measure_ceilings(
        setting.device,
        dtypes=(setting.dtype,),
        quick=setting.dry_run,
        budget_s=setting.pick(8.0, 0.2),
    )


def copy_rate(ceilings: Ceilings) -> tuple[float, str]:
    """Bytes per second of a copy far larger than every cache, and a name for it."""
    point = ceilings.bandwidth[-1]
    size = f"{point.working_set_bytes >> 20} MiB"
    return point.copy.per_s, f"copy bandwidth measured in this run over {size}"


def bandwidth_shares(
    bytes_per_s: float, ceilings: Ceilings, device: torch.device
) -> list[dict[str, Any]]:
    """A rate compared with the copy bandwidth measured and, if there is a data sheet,
    with its bandwidth."""
    rate, name = copy_rate(ceilings)
    shares = [share(bytes_per_s, rate, name, "bytes/s")]
    sheet = data_sheet(device)
    if sheet is not None and sheet.memory_bytes_per_s is not None:
        of = f"memory bandwidth of the {sheet.name} data sheet"
        shares.append(share(bytes_per_s, sheet.memory_bytes_per_s, of, "bytes/s"))
    return shares


def matrix_share(flops_per_s: float, ceilings: Ceilings, dtype: str) -> dict[str, Any]:
    """A rate compared with the best matrix product measured."""
    rate = ceilings.flops_per_s(dtype)
    of = f"{dtype} matrix rate measured in this run"
    return share(flops_per_s, rate, of, "FLOP/s")


def data_sheet(device: torch.device) -> Any:
    """The table's entry for this GPU; None if there is none."""
    if device.type != "cuda":
        return None
    return find_device(torch.cuda.get_device_name(device))


def is_tuned(setting: Setting, spec: ModelSpec) -> bool:
    """True if the part `tune` has found this model's tiles on this GPU, in this run
    or an earlier one."""
    if setting.device.type != "cuda":
        return False
    from minserve.kernels.triton.analysis import autotune

    return autotune.is_tuned(spec, getattr(torch, setting.dtype), setting.device)


def fastest(setting: Setting, config: EngineConfig, spec: ModelSpec) -> EngineConfig:
    """`config` with every switch for a GPU on. A dry run uses the torch operators and no tuned
    tiles."""
    values = FASTEST | {"device": str(setting.device)}
    if setting.dry_run:
        return config.with_values(values | {"kernels.backend": "torch"})
    return config.with_values(values | {"kernels.autotune": is_tuned(setting, spec)})


def free(device: torch.device) -> None:
    """Free memory that is no longer used, so that there is room for the next model."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
