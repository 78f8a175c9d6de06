"""Tree masks: which of its request's other rows a row sees if they do not form a chain.

A speculator that proposes several continuations at once makes a tree (SpecInfer, Miao et al., arXiv
2305.09781): the request's query rows are its nodes, a parent before its children, and a node may
see only its own branch. A mask is int64 `[rows]`: bit j of a row's mask is set if it sees the
request's row j of this batch, itself included. Every row sees all keys before the request's first
query row, and no row sees a later row, whatever its bits are. `PLAIN` is the mask of a row of an
ordinary chunk, so that prompts, decodes and trees share a batch.

The rows of a tree have consecutive positions after their context, even siblings, so a key's
position does not give its distance: a sliding window together with a mask is refused.
"""

from __future__ import annotations

from torch import Tensor, int64

from minserve.batch import PLAIN as PLAIN

MOST_ROWS = 63
"""Most rows of a request with masks other than PLAIN: the last bit is the sign."""


def check_tree(tree: Tensor | None, num_rows: int) -> None:
    """Raise ValueError unless `tree` is None or one int64 mask for each of the batch's rows."""
    if tree is not None and (tree.shape != (num_rows,) or tree.dtype != int64):
        raise ValueError(
            f"the tree mask is {tree.dtype} {list(tree.shape)}, and the batch has {num_rows} rows: "
            "pass int64, one mask per row (-1 for rows of plain causal chunks)"
        )


def refuse_window(tree: Tensor | None, window: int | None) -> None:
    """Raise ValueError for a tree together with a sliding window."""
    if tree is not None and window is not None:
        raise ValueError(
            f"a tree mask in a layer with a sliding window of {window} tokens: siblings lie side "
            "by side in the cache, so places there are no distances; for such a model propose a "
            "chain, whose plain causal mask needs no tree"
        )
