"""The prefix index as a radix tree: edges hold runs of tokens, and tokens are compared.

RadixAttention (SGLang, Zheng et al., arXiv 2312.07104, section 3). Edges are split at page
boundaries only, because a page belongs to one edge. Inside a page the tree still finds how many
tokens agree; such a hit is served by copying the page. The children of a node are sorted by
their tokens, so the pages that share the most tokens with a wanted page are next to its
position in that order.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from minserve.memory.keys import Key, TokenBlocks
from minserve.memory.pool import IntegrityError
from minserve.memory.prefix.index import IndexNode, Match

BlockTokens = tuple[int, ...]
"""The tokens of one page."""


class _Node:
    """An edge and the node at its end: consecutive pages without a branch between them."""

    __slots__ = ("blocks", "children", "firsts", "key", "parent", "runs")

    def __init__(self, parent: _Node | None, key: Key = b"") -> None:
        self.parent = parent
        self.key = key
        """The namespace, if this is a root."""
        self.runs: list[BlockTokens] = []
        """Tokens of each page of the edge; `blocks` are the pages' ids."""
        self.blocks: list[int] = []
        self.children: dict[BlockTokens, _Node] = {}
        self.firsts: list[BlockTokens] = []
        """The keys of `children`, sorted."""

    def attach(self, child: _Node, first: BlockTokens) -> None:
        """Add a child that begins with `first`."""
        self.children[first] = child
        insort(self.firsts, first)

    def detach(self, first: BlockTokens) -> None:
        """Remove the child that begins with `first`."""
        del self.children[first]
        del self.firsts[bisect_left(self.firsts, first)]

    def nearest(self, wanted: BlockTokens) -> tuple[BlockTokens, int] | None:
        """The first page of the child that shares the most leading tokens with `wanted`, and their
        number. If several children share as many, the smallest. None if no child shares a token."""
        index = bisect_left(self.firsts, wanted)
        beside = self.firsts[max(0, index - 1) : index + 1]
        most = max((_common(first, wanted) for first in beside), default=0)
        if not most:
            return None
        return self.firsts[bisect_left(self.firsts, wanted[:most])], most


class RadixIndex:
    """A tree per namespace. `match` walks down it; `insert` adds, extends or splits an edge."""

    def __init__(self) -> None:
        self._roots: dict[Key, _Node] = {}
        self._node_of: dict[int, _Node] = {}

    def match(self, token_blocks: TokenBlocks, max_tokens: int) -> Match:
        """The longest prefix, to the token: full pages, then the best partial match
        of one more page."""
        node = self._roots.get(token_blocks.root)
        if node is None:
            return Match([])
        blocks: list[int] = []
        num_full, at = max_tokens // token_blocks.block_size, 0
        while len(blocks) < num_full:
            wanted = token_blocks.tokens(len(blocks))
            if at == len(node.runs):
                child = node.children.get(wanted)
                if child is None:
                    break
                node, at = child, 0
            elif node.runs[at] != wanted:
                break
            blocks.append(node.blocks[at])
            at += 1
        left = max_tokens - len(blocks) * token_blocks.block_size
        return self._partial(node, at, token_blocks.tokens(len(blocks))[:left], blocks)

    def _partial(self, node: _Node, at: int, wanted: BlockTokens, blocks: list[int]) -> Match:
        """The page after `node.runs[:at]` that shares the most tokens with `wanted`; if several
        do, the smallest."""
        if at < len(node.runs):
            shared = _common(node.runs[at], wanted)
            return Match(blocks, node.blocks[at], shared) if shared else Match(blocks)
        nearest = node.nearest(wanted)
        if nearest is None:
            return Match(blocks)
        first, shared = nearest
        return Match(blocks, node.children[first].blocks[0], shared)

    def insert(self, token_blocks: TokenBlocks, index: int, parent: int | None, block: int) -> int:
        """Add a page after `parent`; returns the page the index now has for this content."""
        tokens = token_blocks.tokens(index)
        if parent is None:
            node = self._roots.get(token_blocks.root) or self._grow_root(token_blocks.root)
            at = 0
        else:
            node = self._node_of[parent]
            # In nearly all calls, `parent` is the last page of its edge.
            at = len(node.blocks)
            if node.blocks[-1] != parent:
                at = node.blocks.index(parent) + 1
        if at < len(node.runs):
            if node.runs[at] == tokens:
                return node.blocks[at]
            self._split(node, at)
        known = node.children.get(tokens)
        if known is not None:
            return known.blocks[0]
        if node.children or node.parent is None:
            branch = _Node(node)
            node.attach(branch, tokens)
            node = branch
        node.runs.append(tokens)
        node.blocks.append(block)
        self._node_of[block] = node
        return block

    def _grow_root(self, key: Key) -> _Node:
        self._roots[key] = root = _Node(None, key)
        return root

    def _split(self, node: _Node, at: int) -> None:
        """Cut an edge in two: `node` keeps its first `at` pages, a new child gets the others."""
        tail = _Node(node)
        tail.runs, tail.blocks = node.runs[at:], node.blocks[at:]
        tail.children, tail.firsts = node.children, node.firsts
        for child in tail.children.values():
            child.parent = tail
        for block in tail.blocks:
            self._node_of[block] = tail
        del node.runs[at:], node.blocks[at:]
        node.children, node.firsts = {tail.runs[0]: tail}, [tail.runs[0]]

    def remove(self, block: int) -> None:
        """Remove a page, which must be the last one of a leaf."""
        node = self._node_of.get(block)
        if node is None:
            raise IntegrityError(f"page {block} is not in the index")
        if node.children or node.blocks[-1] != block:
            raise IntegrityError(f"page {block} is evicted before the pages that continue it")
        first = node.runs[0]
        node.runs.pop()
        node.blocks.pop()
        del self._node_of[block]
        parent = node.parent
        assert parent is not None
        if node.blocks:
            return
        parent.detach(first)
        if parent.parent is not None and len(parent.children) == 1:
            self._join(parent)
        elif parent.parent is None and not parent.children:
            del self._roots[parent.key]

    def _join(self, node: _Node) -> None:
        """Undo a split: join an edge and its only child into one edge."""
        (child,) = node.children.values()
        node.runs += child.runs
        node.blocks += child.blocks
        node.children, node.firsts = child.children, child.firsts
        for block in child.blocks:
            self._node_of[block] = node
        for grandchild in node.children.values():
            grandchild.parent = node

    def blocks(self) -> Iterator[int]:
        """Every page of the index."""
        return iter(self._node_of)

    def check(self) -> None:
        """Verify that every link goes both ways, that children are sorted, and that each split has
        a branch. Raises IntegrityError."""
        seen: dict[int, _Node] = {}
        for key, root in self._roots.items():
            if root.key != key or root.parent is not None or root.runs or not root.children:
                raise IntegrityError("a root of the radix tree is not what it should be")
            stack = [root]
            while stack:
                node = stack.pop()
                if node is not root and (not node.runs or len(node.children) == 1):
                    raise IntegrityError("an edge of the radix tree is empty, or cut in two")
                if len(node.runs) != len(node.blocks) or node.firsts != sorted(node.children):
                    raise IntegrityError("a node of the radix tree contradicts itself")
                for first, child in node.children.items():
                    if child.parent is not node or not child.runs or child.runs[0] != first:
                        raise IntegrityError("a branch of the radix tree is not where it belongs")
                    stack.append(child)
                seen.update(dict.fromkeys(node.blocks, node))
        if seen != self._node_of:
            raise IntegrityError("the radix tree has lost a page, or keeps one that is gone")

    def nodes(self) -> list[IndexNode]:
        """The tree, parents before children, without the roots, which hold no pages."""
        found: list[IndexNode] = []
        stack: list[tuple[_Node, int | None]] = [
            (child, None) for root in self._roots.values() for child in root.children.values()
        ]
        while stack:
            node, parent = stack.pop()
            number = len(found)
            tokens = tuple(token for run in node.runs for token in run)
            found.append(IndexNode(number, parent, tokens, tuple(node.blocks)))
            stack.extend((child, number) for child in node.children.values())
        return found


def _common(a: BlockTokens, b: BlockTokens) -> int:
    """Number of leading tokens that two runs share."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))
