"""One pass over the keys: both sums shrink when a larger score turns up."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # The interpreter's process has it; the notebook need not.
    import triton.language as tl


def attend(q, keys, values, context, scale, KEYS, DIM):
    """Attention of one query over `context` keys, KEYS at a time."""
    column = tl.arange(0, DIM)
    best = float("-inf")
    total = 0.0
    out = tl.zeros([DIM], tl.float32)
    for start in range(0, context, KEYS):
        key = start + tl.arange(0, KEYS)
        inside = key < context
        place = key[:, None] * DIM + column[None, :]
        k = tl.load(keys + place, mask=inside[:, None], other=0.0)
        scores = tl.sum(k * q[None, :], 1) * scale
        scores = tl.where(inside, scores, float("-inf"))
        newest = tl.maximum(best, tl.max(scores, 0))
        shrink = tl.exp(best - newest)
        weights = tl.exp(scores - newest)
        v = tl.load(values + place, mask=inside[:, None], other=0.0)
        total = total * shrink + tl.sum(weights, 0)
        out = out * shrink + tl.sum(weights[:, None] * v, 0)
        best = newest
    return out / total


# The engine's own loop, `attend` in minserve/kernels/triton/attention.py, does this for a whole
# tile of queries at once, so that both sums over keys are matrix products (tl.dot), follows a block
# table to its pages, and takes powers of two, which a GPU has an instruction for.
