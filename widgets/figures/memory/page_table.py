"""The pool as a table: every page at one step, who owns it and how many tokens it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minserve.trace import TraceSnapshot
from widgets.figures.time.lanes import Lane, LaneKey, holders


@dataclass(frozen=True)
class Page:
    """One page at one step."""

    number: int
    owners: tuple[LaneKey, ...]
    """None: free, or cached. Several: shared."""
    tokens: int
    """Tokens it holds when the step ends."""
    cached: bool = False
    """It has no owner, and the prefix cache keeps it for a hit."""


@dataclass(frozen=True)
class PageCounts:
    """What a pool adds up to at one step."""

    total: int
    owned: int
    shared: int
    tokens: int
    wasted_tokens: int
    """Places in owned pages that hold no token."""
    cached: int = 0
    """Pages without an owner, kept for a prefix hit."""

    @property
    def free(self) -> int:
        """Pages without an owner that no prefix hit could find."""
        return self.total - self.owned - self.cached


def pages(
    run: TraceSnapshot, step: int, block_size: int, found: Sequence[Lane] | None = None
) -> list[Page]:
    """Every page of the pool during the kept step `step`."""
    total = run.steps[step].blocks_total
    owners: dict[int, list[LaneKey]] = {}
    tokens: dict[int, int] = {}
    for key, part in holders(run, step, found).items():
        known = part.stop
        for place, number in enumerate(part.blocks):
            owners.setdefault(number, []).append(key)
            held = max(0, min(block_size, known - place * block_size))
            tokens[number] = max(tokens.get(number, 0), held)
    cached = set(run.steps[step].cached_block_ids)
    found_pages = []
    for number in range(total):
        kept = number in cached and number not in owners
        held = block_size if kept else tokens.get(number, 0)
        found_pages.append(Page(number, tuple(owners.get(number, ())), held, kept))
    return found_pages


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
        cached=sum(page.cached for page in grid),
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
