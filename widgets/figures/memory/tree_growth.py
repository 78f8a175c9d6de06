"""How a prefix index grows: its nodes after every few requests, kept while a run goes on.

Reads the index, changes nothing. Knows nothing about drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from minserve.engine import Engine
from minserve.trace import StepTrace, TraceSnapshot

Page = tuple[int, ...]
"""The tokens of one page."""


@dataclass(frozen=True)
class TreeNode:
    """A run of pages without a branch, as it stood at one moment."""

    parent: int | None
    """Place of the node that this one continues in the snapshot's list; None: a first page."""
    pages: tuple[Page, ...]
    num_owned: int
    """Of them, the first so many are held by requests; the others are cached."""


@dataclass(frozen=True)
class TreeSnapshot:
    """The index when a step had ended."""

    step: int
    """Number of steps done."""
    finished: tuple[str, ...]
    """Names of the requests that had ended, in order."""
    nodes: tuple[TreeNode, ...]
    """Parents before children."""
    hit_tokens: int
    """Prompt tokens of those that had ended, found computed when they were admitted."""
    evicted_pages: int
    """Pages evicted so far."""

    @property
    def num_pages(self) -> int:
        """Pages of the index."""
        return sum(len(node.pages) for node in self.nodes)


@dataclass
class TreeGrowth:
    """Snapshots of an engine's prefix index: `drive(engine, traffic, on_step=growth)`.

    One at the start, then one whenever `every` more requests have ended.
    """

    engine: Engine
    every: int = 1
    snapshots: list[TreeSnapshot] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.engine.memory.prefix is None:
            raise ValueError(
                "the engine has no prefix index to watch: give it memory.prefix_cache='radix' or "
                "'hash'"
            )
        if self.every < 1:
            raise ValueError(f"TreeGrowth(every={self.every}): expected at least 1")
        self._keep(0)

    @property
    def run(self) -> TraceSnapshot:
        """The engine's run so far."""
        return self.engine.trace.snapshot()

    def __call__(self, step: StepTrace) -> None:
        """After a step: keep a snapshot if enough requests have ended."""
        done = self.engine.trace.totals.finished_requests
        idle = not self.engine.has_work
        if done >= len(self.snapshots[-1].finished) + (1 if idle else self.every):
            self._keep(step.index + 1)

    def _keep(self, step: int) -> None:
        memory, trace = self.engine.memory, self.engine.trace
        assert memory.prefix is not None
        size, pool = memory.block_size, memory.pool
        nodes, place = [], {}
        for node in memory.prefix.index.nodes():
            place[node.number] = len(nodes)
            pages = tuple(node.tokens[at : at + size] for at in range(0, len(node.tokens), size))
            owned = sum(1 for block in node.blocks if pool.owners(block))
            parent = None if node.parent is None else place[node.parent]
            nodes.append(TreeNode(parent, pages, owned))
        self.snapshots.append(
            TreeSnapshot(
                step=step,
                finished=tuple(record.request_id for record in trace.requests),
                nodes=tuple(nodes),
                hit_tokens=sum(record.metrics.num_cached_tokens for record in trace.requests),
                evicted_pages=trace.totals.evicted_blocks,
            )
        )


@dataclass
class Spot:
    """A page's place in the union of all snapshots: the same tokens behind the same tokens."""

    number: int
    parent: Spot | None
    page: Page
    start: int
    """Tokens before it."""
    children: dict[Page, Spot] = field(default_factory=dict)
    row: int = 0

    @property
    def end(self) -> int:
        """Tokens up to its end."""
        return self.start + len(self.page)


@dataclass(frozen=True)
class Run:
    """Pages in a row that nothing ever branched off from: what is drawn as one bar."""

    spots: tuple[Spot, ...]

    @property
    def row(self) -> int:
        """Row of the drawing."""
        return self.spots[0].row

    @property
    def tokens(self) -> tuple[int, ...]:
        """All its tokens."""
        return tuple(token for spot in self.spots for token in spot.page)

    def readers(self, prompts: Sequence[Sequence[int]]) -> int:
        """How many of the prompts begin with everything up to this run's first page."""
        path: list[int] = []
        spot: Spot | None = self.spots[0]
        while spot is not None:
            path[:0] = spot.page
            spot = spot.parent
        length = len(path)
        return sum(1 for prompt in prompts if list(prompt[:length]) == path)


class Union:
    """Every page that any snapshot held, each with a fixed place, so that a tree grows in its
    drawing and nothing jumps. A first child stays in its parent's row, others open a new one."""

    def __init__(self, snapshots: Sequence[TreeSnapshot]) -> None:
        self._firsts: dict[Page, Spot] = {}
        self.spots: list[Spot] = []
        self.held = [self._enter(snapshot) for snapshot in snapshots]
        """Per snapshot: spot number -> True where a request held the page."""
        self.ends = [self._ends(snapshot) for snapshot in snapshots]
        """Per snapshot: the spots at which a node ended."""
        self.num_rows = self._rows()
        self.runs = self._runs()

    def _walk(self, snapshot: TreeSnapshot) -> list[list[Spot]]:
        """The spots of every node's pages."""
        found: list[list[Spot]] = []
        for node in snapshot.nodes:
            spot = found[node.parent][-1] if node.parent is not None else None
            mine = []
            for page in node.pages:
                spot = self._spot(spot, page)
                mine.append(spot)
            found.append(mine)
        return found

    def _spot(self, parent: Spot | None, page: Page) -> Spot:
        siblings = self._firsts if parent is None else parent.children
        spot = siblings.get(page)
        if spot is None:
            spot = Spot(len(self.spots), parent, page, 0 if parent is None else parent.end)
            siblings[page] = spot
            self.spots.append(spot)
        return spot

    def _enter(self, snapshot: TreeSnapshot) -> Mapping[int, bool]:
        return {
            spot.number: at < node.num_owned
            for node, mine in zip(snapshot.nodes, self._walk(snapshot), strict=True)
            for at, spot in enumerate(mine)
        }

    def _ends(self, snapshot: TreeSnapshot) -> list[Spot]:
        return [mine[-1] for mine in self._walk(snapshot)]

    def _rows(self) -> int:
        rows = 0
        waiting = list(reversed(self._firsts.values()))
        while waiting:
            spot = waiting.pop()
            first = spot.parent is not None and next(iter(spot.parent.children.values())) is spot
            if first and spot.parent is not None:
                spot.row = spot.parent.row
            else:
                spot.row, rows = rows, rows + 1
            waiting.extend(reversed(spot.children.values()))
        return max(1, rows)

    def _runs(self) -> list[Run]:
        found = []
        for spot in self.spots:
            if spot.parent is not None and len(spot.parent.children) == 1:
                continue
            line = [spot]
            while len(line[-1].children) == 1:
                line += line[-1].children.values()
            found.append(Run(tuple(line)))
        return sorted(found, key=lambda run: (run.row, run.spots[0].start))
