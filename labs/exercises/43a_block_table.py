"""Chapter 43a: a token appended to a sequence whose last page may belong to another one too."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from minserve.memory import BlockPool
from widgets.panels import Case, Exercise, Misconception, Picture, Wrong
from widgets.panels.exercises.returns import WHOLE_NUMBER


@dataclass
class SequenceView:
    """A sequence as the rule sees it."""

    table: list[int]
    """Its pages, in order."""
    length: int
    """Tokens it has."""

    def __repr__(self) -> str:
        return f"Sequence(table={self.table}, length={self.length})"


class Pages:
    """The engine's own pool of pages, with the contents of each page."""

    def __init__(self, size: int, count: int = 64) -> None:
        self.size = size
        self._pool = BlockPool(count)
        self._cells: list[object] = [None] * (size * count)
        self._copied = self._taken = 0

    def allocate(self) -> int:
        """A free page; it has one owner then."""
        self._taken += 1
        return self._pool.allocate(1)[0]

    def owners(self, page: int) -> int:
        """In how many tables the page is."""
        return self._pool.owners(page)

    def release(self, page: int) -> None:
        """One owner less; without owners the page is free."""
        self._pool.release([page])

    def copy(self, source: int, target: int) -> None:
        """Copy what is in one page to another."""
        for place in range(self.size):
            self._cells[target * self.size + place] = self._cells[source * self.size + place]
        self._copied += 1

    def __repr__(self) -> str:
        return f"Pages(size={self.size}, {self._pool.num_free} free)"


Rule = Callable[[SequenceView, Pages], int]


@dataclass
class _Sequence:
    table: list[int] = field(default_factory=list)
    tokens: list[object] = field(default_factory=list)


@dataclass
class Run:
    """Operations carried out with a rule; `strict` raises at the first mistake."""

    rule: Rule
    size: int
    strict: bool = True
    taken: list[int] = field(default_factory=list)
    """Pages taken from the pool by each appended token, all so far."""
    slots: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pages = Pages(self.size)
        self.alive: dict[int, _Sequence] = {}

    def carry_out(self, script: str) -> Run:
        """All operations, in order: "start S N" (with a prompt of N tokens), "append S N" (tokens),
        "fork S T" (T begins as S is), "end S"."""
        for what, name, *more in map(str.split, script.split(",")):
            one, other = int(name), int(more[0]) if more else 0
            if what == "start":
                self._start(one, other)
            elif what == "fork":
                parent = self.alive[one]
                self.alive[other] = _Sequence(list(parent.table), list(parent.tokens))
                for page in parent.table:
                    self.pages._pool.share(page)
            elif what == "end":
                for page in self.alive.pop(one).table:
                    self.pages.release(page)
            else:
                for _ in range(other):
                    self._append(one)
        return self

    def done(self) -> tuple[object, ...]:
        """What the rule did so far, and what memory holds now."""
        tables = [(name, tuple(each.table)) for name, each in self.alive.items()]
        known = range(self.pages._pool.num_blocks)
        owners = tuple(self.pages.owners(page) for page in known)
        did = tuple(self.slots), tuple(tables), self.pages._copied, tuple(self.taken)
        return *did, owners, tuple(self.pages._cells)

    def _start(self, name: int, tokens: int) -> None:
        one = self.alive[name] = _Sequence()
        for place in range(tokens):
            if place % self.size == 0:
                one.table.append(self.pages.allocate())
            slot = one.table[-1] * self.size + place % self.size
            one.tokens.append(("prompt", name, place))
            self.pages._cells[slot] = one.tokens[-1]

    def _append(self, name: int) -> None:
        one, size = self.alive[name], self.size
        view = SequenceView(one.table, len(one.tokens))
        called = f"`append(sequence={view!r}, pages={self.pages!r})`"
        slot = self.rule(view, self.pages)
        one.table = view.table
        self.slots.append(slot)
        last, offset = divmod(len(one.tokens), size)
        if self.strict:
            self._check_slot(called, one.table, slot, last, offset)
        one.tokens.append((name, len(one.tokens)))
        if 0 <= slot < len(self.pages._cells):
            self.pages._cells[slot] = one.tokens[-1]
        self.taken.append(self.pages._taken)
        if self.strict:
            self._check_contents(called, name)
            self._check_owners(called)

    def _check_slot(self, called: str, table: list[int], slot: int, last: int, offset: int) -> None:
        if len(table) != last + 1:
            self._wrong(
                f"after {called} the table has {_counted(len(table), 'page')}, expected "
                f"{last + 1} for {_counted(last * self.size + offset + 1, 'token')}"
            )
        strange = [page for page in table if page not in range(self.pages._pool.num_blocks)]
        if strange:
            self._wrong(f"after {called} the table has a page {strange[0]!r}, which does not exist")
        expected = table[last] * self.size + offset
        if slot != expected:
            self._wrong(
                f"{called} returned slot {slot}, expected {expected}: place {offset} of page "
                f"{table[last]}"
            )

    def _check_contents(self, called: str, writer: int) -> None:
        for name, one in self.alive.items():
            for place, token in enumerate(one.tokens):
                page = one.table[place // self.size]
                if self.pages._cells[page * self.size + place % self.size] != token:
                    self._wrong(
                        f"after {called} the sequence has lost its own token {place}: page {page} "
                        "does not hold it"
                        if name == writer
                        else f"{called} wrote over token {place} of another sequence: page {page} "
                        "is in both tables"
                    )

    def _check_owners(self, called: str) -> None:
        held = Counter(page for one in self.alive.values() for page in one.table)
        for page in range(self.pages._pool.num_blocks):
            if held[page] != self.pages.owners(page):
                self._wrong(
                    f"after {called} page {page} counts "
                    f"{_counted(self.pages.owners(page), 'owner')}, and is in "
                    f"{_counted(held[page], 'table')}"
                )
        self.pages._pool.check([one.table for one in self.alive.values()])

    def _wrong(self, message: str) -> None:
        raise Wrong(message, got=self.done())


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _own_copy(sequence: SequenceView, pages: Pages, place: int) -> None:
    shared, mine = sequence.table[place], pages.allocate()
    pages.copy(shared, mine)
    pages.release(shared)
    sequence.table[place] = mine


def _appending(
    claim: Callable[[SequenceView, Pages, int], None] = _own_copy,
    must: Callable[[int], bool] = lambda owners: owners > 1,
) -> Rule:
    """A rule that appends a page where one is missing, and otherwise claims the last one if it must
    with so many owners."""

    def rule(sequence: SequenceView, pages: Pages) -> int:
        last, offset = divmod(sequence.length, pages.size)
        if offset == 0:
            sequence.table.append(pages.allocate())
        elif must(pages.owners(sequence.table[last])):
            claim(sequence, pages, last)
        return sequence.table[last] * pages.size + offset

    return rule


append = _appending()
"""The reference."""


def _case(name: str, size: int, script: str) -> Case:
    def run(rule: Rule) -> None:
        yours, best = Run(rule, size).carry_out(script), Run(append, size).carry_out(script)
        copied, needed = yours.pages._copied, best.pages._copied
        if copied > needed:
            raise Wrong(
                f"{_counted(copied, 'page')} copied where {needed} had to be: a page with one "
                "owner can be written in place, and full pages stay shared",
                got=yours.done(),
            )

    return Case(name, run)


def _drawn(draw: random.Random) -> Case:
    script = [f"start 0 {draw.randint(1, 9)}"]
    alive, names = [0], 1
    for _ in range(draw.randint(4, 9)):
        what = draw.choice(("append", "append", "fork", "end"))
        one = draw.choice(alive)
        if what == "fork" and len(alive) < 5:
            script.append(f"fork {one} {names}")
            alive.append(names)
            names += 1
        elif what == "end" and len(alive) > 1:
            script.append(f"end {one}")
            alive.remove(one)
        else:
            script.append(f"append {one} {draw.randint(1, 6)}")
    script += [f"append {one} 1" for one in alive]
    return _case("a drawn script", draw.randint(2, 5), ", ".join(script))


BEAMS = (
    "start 0 6, fork 0 1, fork 0 2, append 0 3, append 1 3, append 2 3, "
    "end 2, fork 0 3, append 0 4, append 1 4, append 3 4, "
    "end 1, fork 3 4, append 0 5, append 3 5, append 4 5"
)
"""Three beams: at two places the worst one is replaced by a copy of the best."""

CASES = (
    _case("one sequence, no sharing", 4, "start 0 3, append 0 8"),
    _case("a partly filled page", 4, "start 0 6, fork 0 1, append 0 1, append 1 3, append 0 3"),
    _case("full pages", 4, "start 0 8, fork 0 1, append 1 2, append 0 2"),
    _case(
        "three samples: the last owner writes in place",
        4,
        "start 0 5, fork 0 1, fork 0 2, append 2 2, append 1 2, append 0 2",
    ),
    _case("a sample ends before the other writes", 4, "start 0 6, fork 0 1, end 1, append 0 4"),
    _case("pages of one token", 1, "start 0 2, fork 0 1, append 0 2, append 1 2"),
    _case("three beams", 4, BEAMS),
)


def _without_contents(sequence: SequenceView, pages: Pages, place: int) -> None:
    pages.release(sequence.table[place])
    sequence.table[place] = pages.allocate()


def _without_release(sequence: SequenceView, pages: Pages, place: int) -> None:
    mine = pages.allocate()
    pages.copy(sequence.table[place], mine)
    sequence.table[place] = mine


def _all_shared(sequence: SequenceView, pages: Pages) -> int:
    for place, page in enumerate(list(sequence.table)):
        if pages.owners(page) > 1:
            _own_copy(sequence, pages, place)
    return append(sequence, pages)


_in_place = _appending(must=lambda owners: False)


def _one_early(sequence: SequenceView, pages: Pages) -> int:
    return _in_place(SequenceView(sequence.table, max(sequence.length - 1, 0)), pages)


EXERCISE = Exercise(
    key="43a.block_table",
    title="Append a token",
    task="Make room for one more token of a sequence and return its slot. Take a page only where "
    "one is missing, and copy one only where it must be: a shared page that gets a token.",
    function="append",
    parameters=("sequence", "pages"),
    returns=WHOLE_NUMBER,
    cases=CASES,
    random_case=_drawn,
    num_random=16,
    hints=(
        "divmod(sequence.length, pages.size) gives the place in the table where the new token's "
        "page is, and the token's offset in that page.",
        "At offset 0 there is no such page yet: append pages.allocate() to the table. Otherwise "
        "the page is there, and pages.owners(page) says whether it is yours alone.",
        "A shared page: allocate a new one, pages.copy(shared, new), pages.release(shared), and "
        "put the new one in its place in the table. The slot is page * pages.size + offset.",
    ),
    misconceptions=(
        Misconception(
            "in place",
            "You write into a page that another sequence also has. The page must be copied first: "
            "after the fork both sequences see the same page, and both would read your token.",
            (_in_place,),
        ),
        Misconception(
            "always copies",
            "You copy the last page for every token. A page with one owner can be written in "
            "place; copying it costs time and gains nothing.",
            (_appending(must=lambda owners: True),),
        ),
        Misconception(
            "empty copy",
            "You take a new page but do not copy the old one's contents. The tokens before yours "
            "in that page belong to your sequence as well.",
            (_appending(_without_contents),),
        ),
        Misconception(
            "keeps an owner",
            "You copy a shared page but do not release it. It still counts your sequence as an "
            "owner, so it will never be free again: a leak.",
            (_appending(_without_release),),
        ),
        Misconception(
            "copies all",
            "You copy every shared page. Full pages are never written again, so they can stay "
            "shared; only the page that gets the token needs a copy.",
            (_all_shared,),
        ),
        Misconception(
            "one too early",
            "You put the new token where the last one is. With sequence.length tokens, the "
            "places 0 to length - 1 are taken: the new token goes to place length.",
            (_one_early,),
        ),
    ),
    picture=Picture(
        "Three beams: pages taken so far",
        "appended token",
        "pages taken",
        lambda rule: Run(rule, 4, strict=False).carry_out(BEAMS).taken,
    ),
)
