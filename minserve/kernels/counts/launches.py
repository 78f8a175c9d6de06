"""The cost of torch operators on a GPU: launches, and the bytes moved between them.

Each torch operator that is not a view is at least one launch, and passes its result to the next
through memory. They are counted while they run, on any device; on torch's `meta` device nothing is
computed, so a step of a model of any size can be counted. Knows nothing about time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minserve.kernels.base import Ops, PlannedAttention
from minserve.kernels.counts.least import NOTHING, Bytes, size
from minserve.kernels.matrix import Matrix, Product
from minserve.kernels.reference.product import DenseProduct


@dataclass(frozen=True)
class Launch:
    """One launch, or more."""

    operator: str
    """The operator of `Ops` that it is part of; "" outside of one."""
    name: str
    """Torch's name of the operator that ran."""
    moved: Bytes
    flops: int = 0
    """FLOPs of matrix products and attention; a multiply-add is two. Other arithmetic is not
    counted."""


@dataclass(frozen=True)
class Total:
    """Several launches together."""

    launches: int
    moved: Bytes
    flops: int

    @classmethod
    def of(cls, launches: Iterable[Launch]) -> Total:
        """The sum of these launches."""
        found, moved, flops = 0, NOTHING, 0
        for launch in launches:
            found, moved, flops = found + 1, moved.plus(launch.moved), flops + launch.flops
        return cls(found, moved, flops)


def by_operator(launches: Iterable[Launch]) -> dict[str, Total]:
    """Operator -> its launches, in order of first appearance."""
    sorted_out: dict[str, list[Launch]] = {}
    for launch in launches:
        sorted_out.setdefault(launch.operator, []).append(launch)
    return {operator: Total.of(found) for operator, found in sorted_out.items()}


_GATHERS = ("index_select", "index", "embedding", "gather")
_SCATTERS = {"index_put_": 2, "index_copy_": 3}
"""In-place operators that write some elements -> the index of the argument with
their new values."""
_OVERWRITES = ("copy_", "fill_", "zero_")
_ALLOCATIONS = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


class LaunchCounter(TorchDispatchMode):
    """Counts torch's operators over tensors of `device`: `with LaunchCounter(device) as counter`.

    Views, allocations and copies from another device are not launches. A gather counts the rows it
    returns, not the whole table; a scatter counts the rows it writes. Under `inference_mode` an
    operator that torch composes of several, such as `linear`, counts once: a lower bound.
    """

    def __init__(self, device: torch.device | str) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.launches: list[Launch] = []
        self._operator = ""

    @contextmanager
    def inside(self, operator: str) -> Iterator[None]:
        """Count launches inside this block as part of this operator of `Ops`."""
        before, self._operator = self._operator, operator
        try:
            yield
        finally:
            self._operator = before

    def record(self, name: str, moved: Bytes, flops: int = 0) -> None:
        """Count a launch that is not a torch operator."""
        self.launches.append(Launch(self._operator, name, moved, flops))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """torch calls this instead of the operator."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        given = list(_tensors([args, dict(kwargs or {})]))
        made = list(_tensors([result]))
        here = [each for each in (given or made) if each.device.type == self.device.type]
        if here and name not in _ALLOCATIONS and not _only_views(func, given, made):
            self.record(name, _moved(name, func, args, given, made), _flops(name, given, made))
        return result


def _tensors(parts: Iterable[Any]) -> Iterator[Tensor]:
    for part in parts:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, (list, tuple)):
            yield from _tensors(part)
        elif isinstance(part, dict):
            yield from _tensors(part.values())


def _written_arguments(func: Any) -> list[int]:
    return [
        index
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _only_views(func: Any, given: list[Tensor], made: list[Tensor]) -> bool:
    """True if nothing was computed: every result shares memory with an argument."""
    if _written_arguments(func) or not made:
        return not made
    storages = {each.untyped_storage()._cdata for each in given}
    return all(each.untyped_storage()._cdata in storages for each in made)


def _moved(
    name: str, func: Any, args: tuple[Any, ...], given: list[Tensor], made: list[Tensor]
) -> Bytes:
    written = [args[index] for index in _written_arguments(func) if index < len(args)]
    if name in _GATHERS:
        out = sum(map(size, made))
        return Bytes(out + sum(map(size, given[1:])), out)
    if name in _SCATTERS:
        values = size(args[_SCATTERS[name]])
        return Bytes(sum(map(size, given[1:])), values)
    if name == "index_fill_":
        target, dim, index = args[:3]
        rows = index.numel() * (size(target) // max(1, target.shape[dim]))
        return Bytes(size(index), rows)
    if name in _OVERWRITES:
        return Bytes(sum(map(size, given[1:])), size(args[0]))
    out = sum(map(size, written or made))
    return Bytes(sum(map(size, given)), out)


def _flops(name: str, given: list[Tensor], made: list[Tensor]) -> int:
    if name in ("linear", "matmul", "mm", "bmm"):
        return 2 * made[0].numel() * given[0].shape[-1]
    if name == "scaled_dot_product_attention":
        return 4 * given[0].numel() * given[1].shape[-2]
    return 0


class LabelledOps:
    """Wraps any `Ops`, and reports to a counter which operator runs."""

    def __init__(self, ops: Ops, counter: LaunchCounter) -> None:
        self.name = ops.name
        self._ops, self._counter = ops, counter

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._ops, name)

        def labelled(*args: Any, **named: Any) -> Any:
            with self._counter.inside(name):
                return call(*args, **named)

        return labelled

    def product(self, matrix: Matrix) -> Product | None:
        """See `Ops.product`: of a dense matrix, the calls of the operators it consists of."""
        return DenseProduct(matrix, self) if matrix.kind == "dense" else None

    def plan_attention(self, *args: Any, **named: Any) -> PlannedAttention:
        """See `Ops.plan_attention`: planning is host work, the calls of the plan are attention."""
        with self._counter.inside("plan"):
            planned = self._ops.plan_attention(*args, **named)
        return _labelled(planned, self._counter)


def _labelled(planned: PlannedAttention, counter: LaunchCounter) -> PlannedAttention:
    def attend(*args: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
        with counter.inside("attention"):
            return planned(*args, **named)

    run: Callable[..., tuple[Tensor, Tensor | None]] = attend
    return run
