"""The operators that are timed to find what a device can do: reads, copies, products.

Each function returns candidates by name and the work of one call, for `measure.best_rate`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

Candidates = dict[str, Callable[[], object]]


def _values(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    # Ordinary numbers: zeros and denormals run at other speeds, and on a GPU constant data takes
    # less power and so allows higher clocks than real data.
    if device.type == "cpu":
        return torch.full(shape, 0.5, dtype=dtype)
    return torch.rand(*shape, device=device).to(dtype)


def reads(size_bytes: int, device: torch.device) -> tuple[Candidates, int]:
    """Operators that read `size_bytes` of float32 once and write almost nothing."""
    columns = 1024 if size_bytes >= 1 << 20 else 64
    x = _values(max(1, size_bytes // (4 * columns)), columns, device=device)
    flat, vector = x.view(-1), _values(columns, device=device)
    candidates: Candidates = {
        "sum": partial(torch.sum, flat),
        # Both operands are the same memory, which is read once.
        "dot": partial(torch.dot, flat, flat),
        "mv": partial(torch.mv, x, vector, out=torch.empty(x.shape[0], device=device)),
        "sum rows": partial(torch.sum, x, 0),
    }
    return candidates, x.nbytes


def copies(size_bytes: int, device: torch.device) -> tuple[Candidates, int]:
    """A copy whose source and destination together are `size_bytes`; all of it is moved."""
    source = _values(max(1, size_bytes // 8), device=device)
    target = torch.empty_like(source)
    return {"copy": partial(target.copy_, source)}, 2 * source.nbytes


def matrix_products(
    rows: int, size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Candidates, int]:
    """`[rows, size] x [size, size]`: plain, and with the weight in the library's
    preferred layout."""
    x = _values(rows, size, device=device, dtype=dtype)
    weight = _values(size, size, device=device, dtype=dtype)
    out = torch.empty(rows, size, device=device, dtype=dtype)
    candidates: Candidates = {
        "mm": partial(torch.mm, x, weight, out=out),
        "linear": partial(functional.linear, x, weight),
    }
    if device.type == "cpu":
        candidates |= _packed(x, weight)
    return candidates, 2 * rows * size * size


def _packed(x: Tensor, weight: Tensor) -> Candidates:
    """Products with a weight repacked beforehand; which of them exist depends on torch's build."""
    found: Candidates = {}
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0])
        call = partial(torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], "")
        call()
        found["oneDNN packed"] = call
    except (AttributeError, RuntimeError):
        pass
    if weight.dtype is torch.float32:
        try:
            packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, x.shape[0])
            call = partial(torch.ops.mkl._mkl_linear, x, packed, weight, None, x.shape[0])
            call()
            found["MKL packed"] = call
        except (AttributeError, RuntimeError):
            pass
    return found


def matrix_vector_products(
    size: int, dtype: torch.dtype, device: torch.device
) -> tuple[Candidates, int]:
    """`[size, size] x [size]`, counted in bytes of the matrix: a decode step of one request."""
    weight = _values(size, size, device=device, dtype=dtype)
    vector = _values(size, device=device, dtype=dtype)
    row = vector.unsqueeze(0)
    candidates: Candidates = {
        "mv": partial(torch.mv, weight, vector, out=torch.empty_like(vector)),
        "linear": partial(functional.linear, row, weight),
    }
    if device.type == "cpu":
        candidates |= _packed(row, weight)
    return candidates, weight.nbytes
