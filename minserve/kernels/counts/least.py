"""The least bytes an operator can move: every needed input is read once, every output
is written once.

Counted from shapes alone, so tensors may be on torch's `meta` device. Temporary data of a kernel
(partial results, scores) are not counted, so that a comparison with this bound shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Bytes(NamedTuple):
    """Traffic of one operator, or of several."""

    read: int
    written: int

    @property
    def total(self) -> int:
        """Bytes read and written together."""
        return self.read + self.written

    def plus(self, other: Bytes) -> Bytes:
        """The sum, reads and writes separately."""
        return Bytes(self.read + other.read, self.written + other.written)


NOTHING = Bytes(0, 0)


def size(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers; repeated numbers of an expanded tensor count once."""
    count = tensor.itemsize
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride or not length else 1
    return count


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Bytes:
    """See `Ops.linear`."""
    written = x.shape[0] * weight.shape[0] * x.itemsize
    return Bytes(size(x) + size(weight) + (0 if bias is None else size(bias)), written)


def rms_norm(x: Tensor, weight: Tensor) -> Bytes:
    """See `Ops.rms_norm`."""
    return Bytes(size(x) + size(weight), size(x))


def rms_norm_rows(x: Tensor, rows: Tensor, weight: Tensor) -> Bytes:
    """See `Ops.rms_norm_rows`: only those rows are read."""
    moved = rows.shape[0] * x.shape[1] * x.itemsize
    return Bytes(moved + size(rows) + size(weight), moved)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Bytes:
    """See `Ops.add_rms_norm`: the sum and its norm are both written."""
    return Bytes(size(x) + size(residual) + size(weight), 2 * size(x))


def silu_and_mul(gate_up: Tensor) -> Bytes:
    """See `Ops.silu_and_mul`; `Ops.gelu_and_mul` moves the same."""
    return Bytes(size(gate_up), size(gate_up) // 2)


def rotary(x: Tensor, positions: Tensor, cos_sin: Tensor) -> Bytes:
    """See `Ops.rotary_`: each row reads its position's angles."""
    angles = x.shape[0] * cos_sin.shape[1] * cos_sin.itemsize
    return Bytes(size(x) + size(positions) + angles, size(x))


def store_kv(k: Tensor, v: Tensor, slots: Tensor) -> Bytes:
    """See `Ops.store_kv`."""
    return Bytes(size(k) + size(v) + size(slots), size(k) + size(v))


def rotary_store(
    heads: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    keys: Tensor,
    slots: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
) -> Bytes:
    """See `Ops.rotary_store_`: queries are written in place, keys and values to pages."""
    angles = heads.shape[0] * cos_sin.shape[1] * cos_sin.itemsize
    norms = sum(size(weight) for weight in (q_norm, k_norm) if weight is not None)
    read = size(heads) + size(positions) + size(slots) + angles + norms
    return Bytes(read, size(heads))


def attention(
    q: Tensor,
    keys: Tensor,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    window: int | None = None,
    need_lse: bool = False,
) -> Bytes:
    """See `Ops.plan_attention`: the keys and values that any row of a request sees, once; the block
    table's entries for them; two lengths per request; queries and output."""
    _, num_kv_heads, block_size, head_dim = keys.shape
    seen = blocks = 0
    for rows, context in zip(query_lens, context_lens, strict=True):
        first = 0 if window is None else max(0, context - rows - window + 1)
        seen += context - first
        blocks += -(-context // block_size) - first // block_size
    cached = 2 * seen * num_kv_heads * head_dim * keys.itemsize
    lengths = 4 * (blocks + 2 * len(query_lens) + 1)
    written = size(q) + (4 * q.shape[0] * q.shape[1] if need_lse else 0)
    return Bytes(size(q) + cached + lengths, written)


def split_attention(
    requests: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    splits: int,
    itemsize: int,
) -> Bytes:
    """Decode attention whose context is split into `splits` parts.

    The bytes that `attention` moves for `requests` contexts of `context` tokens, without lengths
    and tables, plus the parts with their log-sum-exps in float32, written by one kernel and read by
    the other. With one part there is nothing to merge.
    """
    rows = requests * heads * head_dim * itemsize
    cached = 2 * requests * kv_heads * context * head_dim * itemsize
    parts = requests * heads * splits * (head_dim + 1) * 4 if splits > 1 else 0
    return Bytes(rows + cached + parts, rows + parts)
