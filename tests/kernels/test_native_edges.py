"""What C++ must not be given: tensors that do not lie as it reads them, or with too few numbers.

The operators promise torch's answer for unusual strides, and torch's error for shapes that do not
fit. Without a check, C++ would read and write other memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernels.ragged import Shape, build
from kernels.test_native import each_dtype, poisoned_memory
from kernels.test_native_products import each_kind, made, native
from torch import Tensor

from minserve.kernels import TorchOps, why_not_native
from minserve.kernels.base import Ops, PlannedAttention
from minserve.kernels.cpu.native import native_ops
from minserve.kernels.reference.attention import accumulation_dtype

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
__all__ = ["poisoned_memory"]


def spread(tensor: Tensor) -> Tensor:
    """The same numbers with others between them."""
    between = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)
    between[..., 0], between[..., 1] = tensor, 5
    return between[..., 0]


@each_dtype
@pytest.mark.parametrize("rows", [0, 1, 4, 5])
@pytest.mark.parametrize("inputs", [0, 1, 33])
def test_a_product_of_no_rows_or_no_inputs(dtype: torch.dtype, rows: int, inputs: int) -> None:
    matrix = made("dense", 70, inputs, dtype, bias=True)
    x = torch.randn(rows, inputs).to(dtype)
    out = native_ops().linear(x, matrix.codes, matrix.bias)
    assert out.shape == (rows, 70)
    for kind in ("dense", "int8"):
        matrix = made(kind, 64, inputs, dtype, bias=True)
        if native_ops().packing(kind, dtype) is None:
            continue
        out = native(matrix).apply(x)
        assert out.shape == (rows, 64)
        if not inputs:
            assert matrix.bias is not None and torch.equal(out, matrix.bias.expand(rows, 64))
        for activation in ("silu", "gelu_tanh"):
            halves = native(matrix.with_bias(None)).apply_gated(x, activation)
            assert halves.shape == (rows, 32) and (inputs or not halves.any())


@each_kind
@pytest.mark.parametrize(("start", "stop"), [(32, 151), (-32, 64), (64, 32)])
@pytest.mark.parametrize("packed", [False, True])
def test_a_part_ends_where_the_matrix_does(kind: str, start: int, stop: int, packed: bool) -> None:
    matrix = made(kind, 150, 8, torch.float32)
    if packed:
        matrix = native(matrix).matrix
    with pytest.raises(ValueError, match=rf"outputs {start} to {stop} of a matrix of 150: a part"):
        matrix.part(start, stop)


@each_kind
def test_a_matrix_whose_tensors_are_not_of_its_size_has_no_product(kind: str) -> None:
    ops = native_ops()
    matrix = native(made(kind, 150, 8, torch.float32, bias=True)).matrix
    assert matrix.bias is not None
    for other in (
        replace(matrix, outputs=200),
        replace(matrix, inputs=9),
        replace(matrix, bias=matrix.bias[:149]),
        replace(matrix, bias=spread(matrix.bias)),
        replace(matrix, codes=matrix.codes[1:]),
    ):
        assert ops.product(other) is None


Call = Callable[[Ops, list[Tensor]], list[Tensor]]


def rows_case(dtype: torch.dtype) -> dict[str, tuple[list[Tensor], Call]]:
    """Operator -> its tensors, and the call that returns all that it wrote."""
    wide = accumulation_dtype(dtype)
    x, weight = torch.randn(5, 300).to(dtype), torch.randn(300).to(dtype)
    heads, norm = torch.randn(5, 8, 32).to(dtype), torch.randn(32).to(dtype)
    positions, slots = torch.arange(5), torch.tensor([7, 3, 11, 0, 15])
    angles = torch.randn(9, 32, dtype=wide)
    keys, values = torch.zeros(2, 5, 2, 4, 32).to(dtype)

    def add(ops: Ops, given: list[Tensor]) -> list[Tensor]:
        return [ops.add_rms_norm(given[0], given[1], given[2], 1e-5), given[1]]

    def rotary(ops: Ops, given: list[Tensor]) -> list[Tensor]:
        ops.rotary_(given[0], given[1], given[2])
        return given[:1]

    def store(ops: Ops, given: list[Tensor]) -> list[Tensor]:
        ops.store_kv(*given)
        return given[2:4]

    def rotary_store(ops: Ops, given: list[Tensor]) -> list[Tensor]:
        ops.rotary_store_(*given, 1e-5)
        return [given[0][:, :4], *given[3:5]]

    return {
        "rms_norm": ([x, weight], lambda ops, given: [ops.rms_norm(given[0], given[1], 1e-5)]),
        "add_rms_norm": ([x, x.flip(0), weight], add),
        "rotary_": ([heads, positions, angles], rotary),
        "store_kv": ([heads[:, :2], heads[:, 2:4], keys, values, slots], store),
        "rotary_store_": (
            [heads, positions, angles, keys, values, slots, norm, norm.flip(0)],
            rotary_store,
        ),
        "linear": (
            [x[:3], torch.randn(70, 300).to(dtype), torch.randn(70).to(dtype)],
            lambda ops, given: [ops.linear(*given)],
        ),
    }


OPERATORS = list(rows_case(torch.float32))


@each_dtype
@pytest.mark.parametrize("name", OPERATORS)
def test_arguments_of_any_stride_give_the_same(dtype: torch.dtype, name: str) -> None:
    given, call = rows_case(dtype)[name]
    expected = call(TorchOps(), [each.clone() for each in given])
    limit = {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 0.2)
    for index in range(len(given)):
        tensors = [each.clone() for each in given]
        tensors[index] = spread(tensors[index])
        assert not tensors[index].is_contiguous()
        for mine, torchs in zip(call(native_ops(), tensors), expected, strict=True):
            assert (mine - torchs).abs().max() < limit


TOO_SHORT = [
    ("rms_norm", 1),
    ("add_rms_norm", 1),
    ("add_rms_norm", 2),
    ("rotary_", 1),
    ("store_kv", 1),
    ("store_kv", 4),
    ("rotary_store_", 1),
    ("rotary_store_", 5),
    ("rotary_store_", 6),
    ("rotary_store_", 7),
    ("linear", 2),
]
"""Operator, and which of its tensors is given without its last two rows."""


@each_dtype
@pytest.mark.parametrize(("name", "index"), TOO_SHORT)
def test_too_few_numbers_are_torchs_error(dtype: torch.dtype, name: str, index: int) -> None:
    given, call = rows_case(dtype)[name]
    given[index] = given[index][:-2]
    with pytest.raises((RuntimeError, IndexError)):
        call(native_ops(), given)


@each_dtype
def test_values_unlike_the_keys_go_to_torch(dtype: torch.dtype) -> None:
    """Also where a plan has seen these keys before, with values like them."""
    batch = build(Shape((1, 9), (40, 33), 4, 2, 2, 16, None, 3), dtype)

    def planned(ops: Ops) -> PlannedAttention:
        return ops.plan_attention(*batch.args())

    expected, _ = planned(TorchOps())(batch.q, batch.keys, batch.values, batch.scores)
    inside_out = batch.values.transpose(1, 2).contiguous().transpose(1, 2)
    limit = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    mine = planned(native_ops())
    for values in (batch.values, inside_out, batch.values, spread(batch.values)):
        out, _ = mine(batch.q, batch.keys, values, batch.scores)
        assert (out - expected).abs().max() < limit
    with pytest.raises((RuntimeError, IndexError)):
        mine(batch.q[:-1], batch.keys, batch.values, batch.scores)
