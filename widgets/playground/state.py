"""The setup as it stands: every form changes it here, and hears of every change.

A change that says nothing possible is refused in a sentence and leaves the setup as it was. A
combination that only cannot run is kept, because it may be a step on the way to one that can:
`refusals` has the sentence of the rule that refuses it. Knows nothing about widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from minserve.bench.compare.code import decode
from minserve.bench.compare.errors import SetupError
from minserve.bench.compare.setup import FieldValue, Setup, Variant
from minserve.config import ConfigError, EngineConfig
from widgets.metrics import METRICS

IMPOSSIBLE = (SetupError, ConfigError)
SIDES = "sides"
"""The place of what is done to a whole side; a field's place is its path."""


class State:
    """One setup, its listeners, and why the last change was refused."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.problem = ""
        self.place = ""
        """Where the last change was made: the form of that place says why it was refused."""
        self.telling = False
        """True while forms are being told: what they then do to their inputs is no change."""
        self._listeners: list[Callable[[], None]] = []

    def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard()` after every change, refused ones too: a form then shows what holds."""
        self._listeners.append(heard)

    def change(self, make: Callable[[Setup], Setup], place: str = "") -> bool:
        """Put `make(setup)` in its place; False where that is refused: `problem` says why."""
        if self.telling:
            return False
        try:
            self.setup, self.problem = _known(make(self.setup)), ""
        except IMPOSSIBLE as error:
            self.problem = str(error)
        self.place = place
        self.tell()
        return not self.problem

    def refuse(self, sentence: str, place: str) -> None:
        """Leave the setup as it is, for a text that stands for no value."""
        self.problem, self.place = sentence, place
        self.tell()

    def forget(self) -> None:
        """A run begins: what was refused before it is past."""
        if self.problem:
            self.refuse("", "")

    def refused_at(self, place: str) -> str:
        """Why the last change was refused, where it was made there; "" otherwise."""
        return self.problem if self.place == place else ""

    def tell(self) -> None:
        """Let every form show what holds."""
        self.telling = True
        try:
            for heard in self._listeners:
                heard()
        finally:
            self.telling = False

    def edit(self, place: str = "", /, **fields: Any) -> bool:
        """Replace fields of the setup."""
        return self.change(lambda setup: replace(setup, **fields), place)

    def restore(self, code: str, place: str = "") -> bool:
        """Put the setup of a code in place of this one."""
        return self.change(lambda setup: decode(code), place)

    # Sides.

    def set(self, side: str, path: str, value: FieldValue) -> bool:
        """Change one field of a side; the value that it has without a change takes it back."""

        def changed(setup: Setup) -> Setup:
            below = EngineConfig() if side == setup.base_name else setup.config(setup.base_name)
            rest = {name: each for name, each in setup.changes(side).items() if name != path}
            after = below.with_values({path: value}).get(path)
            kept = rest if after == below.get(path) else rest | {path: after}
            return with_changes(setup, side, kept)

        return self.change(changed, path)

    def take_back(self, side: str, path: str) -> bool:
        """Drop one change of a side."""

        def without(setup: Setup) -> Setup:
            kept = {name: each for name, each in setup.changes(side).items() if name != path}
            return with_changes(setup, side, kept)

        return self.change(without, SIDES)

    def add_variant(self, name: str = "", changes: Mapping[str, FieldValue] | None = None) -> bool:
        """One more variant; without a name it is numbered."""

        def added(setup: Setup) -> Setup:
            numbers = (f"variant {number}" for number in range(1, 9))
            free = name or next(each for each in numbers if each not in setup.names)
            return replace(setup, variants=(*setup.variants, Variant(free, changes or {})))

        return self.change(added, SIDES)

    def remove_variant(self, name: str) -> bool:
        """Drop a variant."""
        kept = tuple(each for each in self.setup.variants if each.name != name)
        return self.edit(SIDES, variants=kept)

    def rename(self, side: str, name: str) -> bool:
        """Call a side otherwise."""
        if side == self.setup.base_name:
            return self.edit(SIDES, base_name=name)
        return self.edit(
            SIDES,
            variants=tuple(
                replace(each, name=name) if each.name == side else each
                for each in self.setup.variants
            ),
        )

    def refusals(self) -> dict[str, str]:
        """Side -> why it cannot run, for those that cannot."""
        found = {}
        for name in self.setup.names:
            if said := refusal(self.setup, name):
                found[name] = said
        return found


def _known(setup: Setup) -> Setup:
    if setup.headline not in METRICS:
        raise SetupError(f"there is no quantity {setup.headline[:40]!r} to compare")
    return setup


def with_changes(setup: Setup, side: str, changes: Mapping[str, FieldValue]) -> Setup:
    """The setup with other changes of one side."""
    if side == setup.base_name:
        return replace(setup, base=changes)
    return replace(
        setup,
        variants=tuple(
            replace(each, changes=changes) if each.name == side else each for each in setup.variants
        ),
    )


def refusal(setup: Setup, side: str) -> str:
    """The sentence of what refuses this side; "" where nothing does."""
    try:
        setup.resolved(side)
    except (*IMPOSSIBLE, ValueError, OSError) as error:
        return str(error)
    return ""
