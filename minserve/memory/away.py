"""Requests whose computed tokens wait outside the device: swapped out, or from another engine.

Swapping: a preempted request's pages wait in host slots until it returns. Every cache group has
slots of its own; a request is swapped out in all of them or in none. The pages of an imported
request wait in the memory of its `ExportedPages`. Both come back in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minserve.clock import Clock
from minserve.memory.events import MemoryEvents
from minserve.memory.group import PageGroup
from minserve.memory.groups.tables import BlockTable
from minserve.memory.reuse import Found
from minserve.memory.storage.exported import ExportedPages
from minserve.request import Request


@dataclass(frozen=True, slots=True)
class _Away:
    """The pages of one request."""

    firsts: list[int]
    """By cache group: index of the first page."""
    first_tokens: list[int]
    """By cache group: `BlockTable.first_token`."""
    slots: list[list[int]]
    """By cache group: the host slot of each page; none if the request was imported."""
    imported: ExportedPages | None = None


class AwayRequests:
    """Where the pages of each request are that waits with computed tokens."""

    def __init__(self, groups: Sequence[PageGroup], clock: Clock, events: MemoryEvents) -> None:
        self._groups = groups
        self._clock = clock
        self._events = events
        self._away: dict[Request, _Away] = {}

    def __contains__(self, request: Request) -> bool:
        return request in self._away

    def requests(self) -> set[Request]:
        """The requests that are swapped out."""
        return set(self._away)

    def firsts(self, request: Request) -> list[int] | None:
        """By cache group: index of the request's first saved page; None if it is not away."""
        away = self._away.get(request)
        return None if away is None else away.firsts

    def save(self, request: Request) -> bool:
        """Copy the pages of a request's computed tokens to the host. False, with nothing changed,
        if a group has no room there."""
        pages = [group.committed(request) for group in self._groups]
        slots: list[list[int]] = []
        start = self._clock.now()
        try:
            for group, (_, blocks) in zip(self._groups, pages, strict=True):
                taken = None if group.host is None else group.host.swap_out(blocks)
                if taken is None:
                    break
                slots.append(taken)
        except BaseException:
            self._release(slots)
            raise
        self._events.transfer_s += self._clock.now() - start
        if len(slots) < len(pages):
            self._release(slots)
            return False
        self._events.swapped_out_blocks += sum(map(len, slots))
        first_tokens = [group.tables[request].first_token for group in self._groups]
        self._away[request] = _Away([first for first, _ in pages], first_tokens, slots)
        return True

    def export(self, request: Request) -> ExportedPages | None:
        """A copy of a request's computed tokens, wherever they are; None if it has none. No batch
        may be in flight. Changes nothing."""
        tokens = request.num_computed_tokens
        away = self._away.get(request)
        if away is not None and away.imported is not None:
            return away.imported
        if not tokens or (away is None and request not in self._groups[0].tables):
            return None
        start, found = self._clock.now(), []
        for number, group in enumerate(self._groups):
            if away is None:
                first, blocks = group.committed(request)
                first_token = group.tables[request].first_token
                pages = group.store.read(blocks)
            else:
                first, blocks = away.firsts[number], away.slots[number]
                first_token = away.first_tokens[number]
                pages = group.store.read_host(blocks)
            found.append(group.exported(first, first_token, tokens, pages))
            self._events.exported_blocks += len(blocks)
        self._events.transfer_s += self._clock.now() - start
        return ExportedPages(tokens, tuple(found))

    def check(self, pages: ExportedPages, num_known: int) -> None:
        """Raise ValueError unless a request of `num_known` tokens can bring these pages."""
        if not 0 < pages.num_tokens < num_known:
            raise ValueError(
                f"{pages.num_tokens} of its {num_known} tokens are said to be computed: expected "
                f"1 to {num_known - 1}"
            )
        if [each.group for each in pages.groups] != [each.plan.group for each in self._groups]:
            raise ValueError("its pages are of other cache groups than those of this engine")
        for each, group in zip(pages.groups, self._groups, strict=True):
            held = pages.num_tokens - each.first
            needed = pages.num_tokens - group.retention.first_needed(pages.num_tokens)
            shapes = group.store.token_shapes(held)
            is_there = each.first >= 0 and held >= needed
            if not is_there or tuple(tuple(one.shape) for one in each.tensors) != shapes:
                raise ValueError(
                    f"it brings {[list(one.shape) for one in each.tensors]} from position "
                    f"{each.first} on for {pages.num_tokens} computed tokens: expected "
                    f"{[list(shape) for shape in shapes]}, and the last {needed} tokens at least"
                )

    def adopt(self, request: Request, pages: ExportedPages) -> None:
        """Keep the computed tokens that a waiting request brings from another engine until it is
        admitted."""
        firsts = [group.retention.first_read(pages.num_tokens) for group in self._groups]
        # With pages of another size, a window may begin inside its first page.
        first_tokens = [each.first for each in pages.groups]
        self._away[request] = _Away(firsts, first_tokens, [[] for _ in self._groups], pages)
        request.num_computed_tokens = pages.num_tokens

    def restore(self, request: Request, found: Found) -> None:
        """Bring a request back into its empty block tables. Pages that the prefix cache still has
        on the device are shared; the others are loaded."""
        start, away = self._clock.now(), self._away[request]
        for number, (group, hit) in enumerate(zip(self._groups, found.hits, strict=True)):
            table, first = group.tables[request], away.firsts[number] + len(hit.blocks)
            group.share(table, hit)
            if not hit.blocks:  # pages of the prefix cache are whole
                table.first_token = away.first_tokens[number]
            stop = group.blocks_for(request.num_computed_tokens)
            loaded = group.pool.allocate(stop - first)
            group.tables.extend(table, loaded)
            if away.imported is not None:
                self._fill(number, table, first, stop, away.imported)
                continue
            assert group.host is not None
            group.host.load(away.slots[number][len(hit.blocks) :], loaded)
            self._events.swapped_in_blocks += len(loaded)
        self.drop(request)
        self._events.transfer_s += self._clock.now() - start

    def fill(self, request: Request) -> int:
        """Bring a request into the pages that its block tables already have, if it was imported;
        returns how many computed tokens they hold."""
        start, away = self._clock.now(), self._away.get(request)
        pages = away.imported if away is not None else None
        if pages is None:
            return 0
        for number, group in enumerate(self._groups):
            stop = group.blocks_for(pages.num_tokens)
            self._fill(number, group.tables[request], 0, stop, pages)
        self.drop(request)
        self._events.transfer_s += self._clock.now() - start
        return pages.num_tokens

    def _fill(
        self, number: int, table: BlockTable, first: int, stop: int, pages: ExportedPages
    ) -> None:
        self._groups[number].fill(table, first, stop, pages.groups[number])
        self._events.imported_blocks += stop - first

    def drop(self, request: Request) -> None:
        """Free the slots of a request that is back or will not return. Does nothing for a request
        without slots."""
        away = self._away.pop(request, None)
        if away is not None:
            self._release(away.slots)

    def _release(self, slots: Sequence[list[int]]) -> None:
        for group, taken in zip(self._groups, slots, strict=False):
            if group.host is not None:
                group.host.release(taken)

    def holders(self, group: int) -> list[list[int]]:
        """The slots of each request in a group."""
        return [away.slots[group] for away in self._away.values()]

    def reset(self) -> None:
        """Forget every request; does not change the host tiers."""
        self._away.clear()
