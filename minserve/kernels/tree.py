"""Tree masks: which of its request's other rows a row sees if they do not form a chain.

A speculator that proposes several continuations at once makes a tree (SpecInfer, Miao et al., arXiv
2305.09781): the request's query rows are its nodes, a parent before its children, and a node may
see only its own branch. A mask is int64 `[rows]`: bit j of a row's mask is set if it sees the
request's row j of this batch, itself included. Every row sees all keys before the request's first
query row, and no row sees a later row, whatever its bits are. `PLAIN` is the mask of a row of an
ordinary chunk, so that prompts, decodes and trees share a batch. A request's only row is never a
tree, whatever its mask.

The rows of a tree lie side by side in the cache after their context, even siblings, so a key's
place there does not give its distance: a sliding window together with a mask is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, int64

from minserve.batch import PLAIN as PLAIN

MOST_ROWS = 63
"""Most rows of a request with masks other than PLAIN: the last bit is the sign."""


def check_tree(tree: Tensor | None, query_lens: Sequence[int]) -> None:
    """Raise ValueError unless `tree` is None or one int64 mask for each of the batch's rows, of
    which requests of more than MOST_ROWS rows have PLAIN ones only.

    `query_lens`: rows of each request. On a device only the shape is checked: to read the masks the
    host would wait. The runner checks a batch before it leaves the host.
    """
    if tree is None:
        return
    num_rows = sum(query_lens)
    if tree.shape != (num_rows,) or tree.dtype != int64:
        raise ValueError(
            f"the tree mask is {tree.dtype} {list(tree.shape)}, and the batch has {num_rows} rows: "
            "pass int64, one mask per row (-1 for rows of plain causal chunks)"
        )
    if tree.device.type != "cpu" or max(query_lens) <= MOST_ROWS:
        return
    for request, masks in enumerate(tree.split(list(query_lens))):
        if len(masks) > MOST_ROWS and bool((masks != PLAIN).any()):
            raise ValueError(
                f"request {request} of the batch is a tree of {len(masks)} rows, and a mask has "
                f"bits for {MOST_ROWS}: propose fewer tokens, or a chain, whose rows all have the "
                f"mask {PLAIN}"
            )


def refuse_window(tree: Tensor | None, window: int | None) -> None:
    """Raise ValueError for a tree together with a sliding window."""
    if tree is not None and window is not None:
        raise ValueError(
            f"a tree mask in a layer with a sliding window of {window} tokens: siblings lie side "
            "by side in the cache, so places there are no distances; for such a model propose a "
            "chain, whose plain causal mask needs no tree"
        )
