"""The pool as a table: every page at one step, who owns it and how many tokens it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minserve.trace import TraceSnapshot
from widgets.figures.lanes import Lane, LaneKey, holders


@dataclass(frozen=True)
class Page:
    """One page at one step."""

    number: int
    owners: tuple[LaneKey, ...]
    """Nobody: free. Several: shared."""
    tokens: int
    """Tokens it holds when the step ends."""


@dataclass(frozen=True)
class PageCounts:
    """What a pool adds up to at one step."""

    total: int
    owned: int
    shared: int
    tokens: int
    wasted_tokens: int
    """Places in owned pages that hold no token."""

    @property
    def free(self) -> int:
        """Pages nobody owns."""
        return self.total - self.owned


def pages(
    run: TraceSnapshot, step: int, block_size: int, found: Sequence[Lane] | None = None
) -> list[Page]:
    """Every page of the pool during the kept step `step`."""
    total = run.steps[step].blocks_total
    owners: dict[int, list[LaneKey]] = {}
    tokens: dict[int, int] = {}
    for key, part in holders(run, step, found).items():
        known = part.start + part.num_tokens
        for place, number in enumerate(part.blocks):
            owners.setdefault(number, []).append(key)
            held = max(0, min(block_size, known - place * block_size))
            tokens[number] = max(tokens.get(number, 0), held)
    return [Page(n, tuple(owners.get(n, ())), tokens.get(n, 0)) for n in range(total)]


def count_pages(grid: Sequence[Page], block_size: int) -> PageCounts:
    """Sums over the pool."""
    owned = [page for page in grid if page.owners]
    held = sum(page.tokens for page in owned)
    return PageCounts(
        total=len(grid),
        owned=len(owned),
        shared=sum(len(page.owners) > 1 for page in owned),
        tokens=held,
        wasted_tokens=len(owned) * block_size - held,
    )


def block_size_of(run: TraceSnapshot, block_size: int | None) -> int:
    """Tokens per page, from the configuration where not given."""
    size = block_size or run.header.config.get("memory.block_size")
    if not size:
        raise ValueError(
            "the page map needs the number of tokens per page, and this trace's header does not "
            "say: page_map(..., block_size=16)"
        )
    return int(size)


def resolve_step(run: TraceSnapshot, step: int | None) -> int:
    """A kept step's index: None is the fullest one, negative counts from the end."""
    if not run.steps:
        raise ValueError("this trace has no steps: run the engine before drawing its pages")
    if step is None:
        return max(range(len(run.steps)), key=lambda index: run.steps[index].blocks_used)
    index = step + len(run.steps) if step < 0 else step
    if not 0 <= index < len(run.steps):
        raise ValueError(f"step {step}: this trace keeps {len(run.steps)} steps, from 0")
    return index
