"""Products of the native operators with matrices of every kind, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.ragged import tolerance
from kernels.test_native import DTYPES, each_dtype, poisoned_memory

from minserve.kernels import why_not_native
from minserve.kernels.cpu.native import native_ops
from minserve.kernels.cpu.native_check import Codes
from minserve.kernels.cpu.native_products import LONG, NativeProduct, ProductFunctions
from minserve.kernels.matrix import Activation, Matrix, PackedShape
from minserve.kernels.reference.product import DenseProduct

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
__all__ = ["poisoned_memory"]

KINDS = ["dense", "int8"]
ACTIVATIONS: list[Activation] = ["silu", "gelu_tanh"]
each_kind = pytest.mark.parametrize("kind", KINDS)
SIZES = st.integers(1, 300)


def made(
    kind: str, outputs: int, inputs: int, dtype: torch.dtype, bias: bool = False, size: float = 1.0
) -> Matrix:
    """A random canonical matrix, whose numbers are of about this size."""
    add = torch.randn(outputs).to(dtype) if bias else None
    if kind == "dense":
        codes = (torch.randn(outputs, inputs) * size).to(dtype)
        return Matrix(Codes(kind), outputs, inputs, dtype, codes, bias=add)
    codes = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8)
    scales = (torch.rand(outputs) + 0.5) * size / 64
    return Matrix(Codes(kind), outputs, inputs, dtype, codes, scales, bias=add)


def numbers(matrix: Matrix) -> torch.Tensor:
    """What a canonical matrix stands for, exactly."""
    wide = matrix.codes.double()
    return wide if matrix.scales is None else wide * matrix.scales.double()[:, None]


def exact(x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    product = x.double() @ numbers(matrix).T
    return product if matrix.bias is None else product + matrix.bias.double()


def native(matrix: Matrix) -> NativeProduct:
    ops = native_ops()
    packing = ops.packing(matrix.kind, matrix.dtype)
    if packing is None:
        pytest.skip("this processor has instructions of its own for bfloat16")
    product = ops.product(matrix.packed(packing))
    assert isinstance(product, NativeProduct)
    return product


def strided(rows: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, inputs + 3).to(dtype)[:, :inputs]


def assert_close(out: torch.Tensor, expected: torch.Tensor, times: float = 1) -> None:
    assert out.shape == expected.shape and out.is_contiguous()
    limit = times * tolerance(out.dtype) * max(1, expected.abs().max())
    assert (out - expected).abs().max() <= limit


@each_kind
@each_dtype
@given(rows=st.integers(1, 70), inputs=SIZES, outputs=st.integers(1, 150), bias=st.booleans())
@settings(max_examples=40)
def test_a_product(
    dtype: torch.dtype, kind: str, rows: int, inputs: int, outputs: int, bias: bool
) -> None:
    x, matrix = strided(rows, inputs, dtype), made(kind, outputs, inputs, dtype, bias)
    out = native(matrix).apply(x)
    assert out.dtype == dtype
    assert_close(out, exact(x, matrix))


@each_dtype
@given(rows=st.integers(1, 30), inputs=SIZES, outputs=st.integers(1, 150), bias=st.booleans())
@settings(max_examples=40)
def test_linear(dtype: torch.dtype, rows: int, inputs: int, outputs: int, bias: bool) -> None:
    x, matrix = strided(rows, inputs, dtype), made("dense", outputs, inputs, dtype, bias)
    for stored in (matrix.codes, matrix.codes.T.clone().T):  # both memory orders
        canonical = replace(matrix, codes=stored)
        product = native_ops().product(canonical)
        assert isinstance(product, DenseProduct) and product.matrix is canonical
        assert_close(product.apply(x), exact(x, matrix))


def gated(both: torch.Tensor, activation: Activation) -> torch.Tensor:
    gate, up = both.chunk(2, -1)
    bent = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
    return bent * up


@each_kind
@each_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(
    rows=st.integers(1, 70),
    inputs=SIZES,
    inner=st.sampled_from([1, 16, 20, 32, 96]),
    bias=st.booleans(),
)
@settings(max_examples=25)
def test_a_gated_product(
    dtype: torch.dtype,
    kind: str,
    activation: Activation,
    rows: int,
    inputs: int,
    inner: int,
    bias: bool,
) -> None:
    x = strided(rows, inputs, dtype)
    matrix = made(kind, 2 * inner, inputs, dtype, bias, inputs**-0.5)
    out = native(matrix).apply_gated(x, activation)
    assert out.dtype == dtype
    assert_close(out, gated(exact(x, matrix), activation), times=2)


@each_kind
@each_dtype
@pytest.mark.parametrize("threads", [1, 2])
@given(rows=st.integers(2, 300), inputs=st.integers(1, 700), outputs=st.integers(1, 150))
@settings(max_examples=15)
def test_a_row_is_the_same_whatever_else_is_in_the_batch(
    dtype: torch.dtype, kind: str, threads: int, rows: int, inputs: int, outputs: int
) -> None:
    x, product = torch.randn(rows, inputs).to(dtype), native(made(kind, outputs, inputs, dtype))
    halves = native(made(kind, 2 * 64, inputs, dtype))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = product.apply(x), halves.apply_gated(x, "gelu_tanh")
    finally:
        torch.set_num_threads(before)
    for first in {0, rows // 2, rows - 1}:
        for count in {1, 2, 5, rows - first}:
            some = x[first : first + count]
            alone = product.apply(some), halves.apply_gated(some, "gelu_tanh")
            for one, all_rows in zip(alone, together, strict=True):
                assert torch.equal(one, all_rows[first : first + count])


@each_kind
@each_dtype
def test_sums_are_taken_in_the_order_of_the_inputs(dtype: torch.dtype, kind: str) -> None:
    """Terms that cancel: another order of the sum gives another number."""
    matrix = made(kind, 40, 4, dtype)
    codes = torch.ones_like(matrix.codes)
    matrix = replace(matrix, codes=codes, scales=None if kind == "dense" else torch.ones(40))
    product = native(matrix)
    if product.matrix.packing is not None and product.matrix.packing.depth == 2:
        pytest.skip("the processor adds the two terms of a pair in its own order")
    big = 2.0 ** (60 if dtype == torch.float64 else 30)
    x = torch.tensor([[big, 1.0, -big, 1.0]]).to(dtype)
    assert product.apply(x.repeat(7, 1)).tolist() == [[1.0] * 40] * 7


@each_kind
@each_dtype
@given(start=st.integers(0, 3), stop=st.integers(1, 150), bias=st.booleans())
@settings(max_examples=15)
def test_a_part_of_a_matrix(
    dtype: torch.dtype, kind: str, start: int, stop: int, bias: bool
) -> None:
    matrix = made(kind, 150, 70, dtype, bias)
    whole = native(matrix)
    width = whole.matrix.packing.width if whole.matrix.packing else 0
    first = min(start, (stop - 1) // width) * width
    part = whole.matrix.part(first, stop)
    assert part is not None and part.codes.data_ptr() >= whole.matrix.codes.data_ptr()
    product = native_ops().product(part)
    assert isinstance(product, NativeProduct)
    x = torch.randn(5, 70).to(dtype)
    assert torch.equal(product.apply(x), whole.apply(x)[:, first:stop])


@each_kind
@each_dtype
def test_halves_that_are_parts_are_gated(dtype: torch.dtype, kind: str) -> None:
    matrix = made(kind, 6 * 32, 70, dtype)
    part = native(matrix).matrix.part(64, 192)
    assert part is not None
    product = native_ops().product(part)
    assert isinstance(product, NativeProduct)
    x = torch.randn(5, 70).to(dtype)
    expected = gated(exact(x, matrix)[:, 64:], "silu")
    assert_close(product.apply_gated(x, "silu"), expected, times=4)


@each_kind
def test_long_products_are_the_same(kind: str) -> None:
    """They run in another copy of the library, which lets other threads run."""
    matrix = made(kind, 512, 1024, torch.float32)
    product, rows = native(matrix), LONG // (512 * 1024) + 1
    x = torch.randn(rows, 1024)
    together = product.apply(x), product.apply_gated(x, "silu")
    assert torch.equal(together[0][:1], product.apply(x[:1]))
    assert torch.equal(together[1][:1], product.apply_gated(x[:1], "silu"))
    assert_close(together[0], exact(x, matrix))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("rows", "long"), [(31, False), (32, True), (33, True)])
def test_only_long_products_let_other_threads_run(gated: bool, rows: int, long: bool) -> None:
    """To release the interpreter's lock takes longer than a short product."""
    product = native(made("dense", 512, 1024, torch.float32))
    called: list[str] = []
    names = ProductFunctions._fields
    product._functions = ProductFunctions(
        *(lambda *_, name=name: called.append(name) for name in names)
    )
    x = torch.zeros(rows, LONG // (512 * 1024 * 32) * 1024)
    if gated:
        product.apply_gated(x, "silu")
    else:
        product.apply(x)
    assert called == [("long" if long else "short") + ("_gated" if gated else "")]


@each_kind
@pytest.mark.parametrize("bias", [False, True])
def test_inputs_of_other_types_and_strides_go_to_torch(kind: str, bias: bool) -> None:
    matrix = made(kind, 64, 70, torch.float32, bias)
    product, x = native(matrix), torch.randn(5, 70)
    turned = torch.randn(70, 5).T
    for each in (x.double(), turned):
        out = product.apply(each)
        assert out.dtype == each.dtype
        assert_close(out, exact(each, matrix), times=1e7 if each.dtype == torch.float64 else 1)
        both = product.apply_gated(each, "gelu_tanh")
        assert (both - gated(exact(each, matrix), "gelu_tanh")).abs().max() < 1e-3
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        product.apply(x[:, :69])


@each_dtype
def test_what_cannot_be_multiplied_has_no_product(dtype: torch.dtype) -> None:
    ops = native_ops()
    packing = ops.packing("int8", dtype)
    assert packing is not None and packing.depth == 1
    matrix = made("int8", 64, 32, dtype)
    packed = matrix.packed(packing)
    assert ops.product(packed) is not None
    scales = matrix.scales
    assert scales is not None
    for other in (
        matrix,  # canonical
        matrix.packed(PackedShape(packing.width // 2)),
        replace(packed, scales=scales.double()),
        replace(packed, scales=None),
        replace(packed, scales=scales[:, None].repeat(1, 2), group=16),
        replace(packed, zeros=torch.zeros_like(scales)),
        replace(packed, format=Codes("int5")),
        made("dense", 64, 32, dtype).packed(PackedShape(packing.width // 2)),
    ):
        assert ops.product(other) is None
    assert ops.packing("int5", dtype) is None
    for kind in KINDS:
        assert ops.packing(kind, torch.float16) is None


@pytest.mark.parametrize("dtype", [each for each in DTYPES if each != torch.float64], ids=str)
def test_bytes_of_every_size_are_exact(dtype: torch.dtype) -> None:
    codes = torch.arange(-128, 128, dtype=torch.int8)[:, None].repeat(1, 3)
    matrix = Matrix(Codes("int8"), 256, 3, dtype, codes, torch.full((256,), 0.5))
    out = native(matrix).apply(torch.eye(3).to(dtype))
    assert torch.equal(out.double(), codes.double().T / 2)


@each_kind
@each_dtype
def test_no_number_of_an_earlier_product_enters_the_next(dtype: torch.dtype, kind: str) -> None:
    """Where rows are filled up to whole steps, in memory that earlier products used too."""
    first, matrix = native(made(kind, 40, 64, dtype)), made(kind, 40, 33, dtype)
    assert first.apply(torch.full((20, 64), torch.nan, dtype=dtype)).isnan().all()
    x = torch.randn(7, 33).to(dtype)
    assert_close(native(matrix).apply(x), exact(x, matrix))


@each_dtype
@pytest.mark.parametrize("bits", [-1, 2**31 - 1, 0x7FC00000])
def test_a_scale_that_is_no_number_gives_none(dtype: torch.dtype, bits: int) -> None:
    """Also in bfloat16, for which a NaN of ones alone must not be rounded up to zero."""
    matrix = made("int8", 40, 8, dtype)
    assert matrix.scales is not None
    matrix.scales[3:5] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    matrix.scales[7] = 0.0
    out = native(matrix).apply(torch.rand(5, 8).to(dtype) + 0.5)
    assert out[:, 3:5].isnan().all() and not out[:, 5:].isnan().any()
    assert not out[:, 7].any()
