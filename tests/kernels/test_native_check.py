"""The comparison with torch that the compiled operators must pass before they are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minserve.kernels import NativeUnavailable, TorchOps, select_ops
from minserve.kernels.base import PlannedAttention, Scores
from minserve.kernels.cpu import native
from minserve.kernels.cpu.native_check import check
from minserve.kernels.matrix import Matrix, Product
from minserve.kernels.reference.product import DenseProduct

Change = Callable[[Scores], Scores]


class Wrong(TorchOps):
    """Torch's operators, of which those with a function here are wrong."""

    def __init__(self, change: Change = lambda scores: scores, tree: bool = True) -> None:
        super().__init__()
        self._change, self._tree = change, tree

    def plan_attention(self, *args: Any) -> PlannedAttention:
        planned = super().plan_attention(*(args if self._tree else args[:5]))

        def attend(q: Tensor, keys: Tensor, values: Tensor, scores: Scores) -> Any:
            return planned(q, keys, values, self._change(scores))

        return attend  # type: ignore[return-value]


def off(name: str, result: bool = True, by: float = 1.5) -> Wrong:
    """With one operator whose result, or what it writes in place, is this many times too large."""
    ops = Wrong()
    right = getattr(ops, name)

    def wrong(*args: Any) -> Any:
        found = right(*args)
        for tensor in [found] if result else args[:5]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.mul_(by)
        return found

    setattr(ops, name, wrong)
    return ops


class WrongFewRows(Wrong):
    """A few rows have a product of their own, with weights that are not packed."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        found = super().linear(x, weight, bias)
        return found.flip(0) if len(x) <= native.FEW_ROWS else found


class WrongKind(Wrong):
    """Products of one kind of matrix are wrong: all, or those that are gated."""

    def __init__(self, kind: str, method: str) -> None:
        super().__init__()
        self._kind, self._method = kind, method

    def product(self, matrix: Matrix) -> Product | None:
        if matrix.kind != self._kind:
            return super().product(matrix)
        numbers = replace(matrix, codes=matrix.dequantised(), scales=None)
        product = DenseProduct(numbers, self)
        right = getattr(product, self._method)

        class Off:
            def __getattr__(self, name: str) -> Any:
                return getattr(product, name)

        off = Off()
        setattr(off, self._method, lambda *args: right(*args).flip(0))
        return off  # type: ignore[return-value]


WRONG: dict[str, Callable[[], Wrong]] = {
    "rms_norm": lambda: off("rms_norm"),
    "add_rms_norm": lambda: off("add_rms_norm"),
    "silu_and_mul": lambda: off("silu_and_mul"),
    "gelu_and_mul": lambda: off("gelu_and_mul"),
    "rotary_": lambda: off("rotary_", result=False),
    "rotary_store_": lambda: off("rotary_store_", result=False),
    "store_kv": lambda: off("store_kv", result=False),
    "linear of few rows": WrongFewRows,
    "not a number": lambda: off("silu_and_mul", by=float("nan")),
    "scale": lambda: Wrong(lambda scores: scores._replace(scale=0.3)),
    "window": lambda: Wrong(lambda scores: scores._replace(window=None)),
    "soft cap": lambda: Wrong(lambda scores: scores._replace(softcap=None)),
    "tree": lambda: Wrong(tree=False),
    "dense": lambda: WrongKind("dense", "apply"),
    "int8": lambda: WrongKind("int8", "apply"),
    "dense, gated": lambda: WrongKind("dense", "apply_gated"),
    "int8, gated": lambda: WrongKind("int8", "apply_gated"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_operator_that_is_wrong_is_found(name: str) -> None:
    with pytest.raises(NativeUnavailable, match=r"differ from torch's by \S+ in torch.float32"):
        check(WRONG[name]())


def test_right_operators_pass() -> None:
    check(TorchOps())
    check(Wrong())


def test_operators_that_are_wrong_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(native, "NativeOps", lambda: off("rms_norm"))
    monkeypatch.setattr(native, "_tried", native._tried.__wrapped__)
    assert type(select_ops("auto", cpu, torch.float32)) is TorchOps
    with pytest.raises(NativeUnavailable, match=r"'native' cannot run: the compiled operators dif"):
        select_ops("native", cpu, torch.float32)
