"""The sides: which there are, what each changes, and every field of the configuration by section.

Changed fields stand on top, each with a button that takes it back. A section's inputs are made when
it is first opened. Knows nothing about runs.
"""

from __future__ import annotations

from html import escape
from typing import Any

import ipywidgets as widgets

from minserve.bench.compare.setup import KEPT_OUT, MOST_VARIANTS, Setup
from minserve.bench.fields import find_knob, show_value
from minserve.config import Knob, describe
from widgets.panels import views
from widgets.playground.fields import FieldInput
from widgets.playground.state import SIDES, State, refusal, with_changes

GENERAL = "general"


def sections() -> dict[str, list[Knob]]:
    """Section -> its fields, in the order of the configuration."""
    found: dict[str, list[Knob]] = {}
    for knob in describe():
        section, dot, _ = knob.path.partition(".")
        if knob.path not in KEPT_OUT:
            found.setdefault(section if dot else GENERAL, []).append(knob)
    return found


class ConfigEditor:
    """Chooses a side and edits it."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.side = widgets.ToggleButtons(options=list(state.setup.names), description="Edit")
        self.name = widgets.Text(description="Its name", continuous_update=False)
        self.add = widgets.Button(description="Add a variant", icon="plus")
        self.remove = widgets.Button(description="Remove this variant", icon="trash")
        self.changes = widgets.VBox([])
        self.refused = views.html()
        self.settled = views.html()
        self.knobs = sections()
        self._boxes = {name: widgets.VBox([]) for name in self.knobs}
        self.inputs: dict[str, FieldInput] = {}
        """Path -> input, of the sections that were opened."""
        titles = [f"Configuration: {name}" for name in self.knobs]
        titles.append("What was settled, side by side")
        self.folds = views.Accordion((*self._boxes.values(), self.settled), titles)
        self.folds.observe(lambda change: self._open(), "selected_index")
        self.side.observe(lambda change: self._choose(), "value")
        self.name.observe(lambda change: self._rename(change["new"]), "value")
        self.add.on_click(lambda button: self._add())
        self.remove.on_click(lambda button: state.remove_variant(self.chosen))
        self.widget = widgets.VBox(
            [
                views.html("<b>Sides</b>"),
                widgets.HBox([self.side, self.add, self.remove]),
                self.name,
                self.changes,
                self.refused,
                self.folds,
            ]
        )
        state.listen(self.show)
        self.show()

    @property
    def chosen(self) -> str:
        """The side that is being edited."""
        names = self._state.setup.names
        return self.side.value if self.side.value in names else names[0]

    def open(self, section: str) -> None:
        """Show a section's fields."""
        self.folds.selected_index = list(self.knobs).index(section)

    def _choose(self) -> None:
        if not self._state.telling and self.side.value is not None:
            self._state.tell()

    def _add(self) -> None:
        if self._state.add_variant():
            self.side.value = self._state.setup.names[-1]

    def _rename(self, name: str) -> None:
        if self._state.telling or name == self.chosen:
            return
        place = self._state.setup.names.index(self.chosen)
        if self._state.rename(self.chosen, name):
            self.side.value = self._state.setup.names[place]

    def _open(self) -> None:
        place = self.folds.selected_index
        names = list(self.knobs)
        if place is None or place >= len(names):
            return
        section = names[place]
        if not self._boxes[section].children:
            made = [FieldInput(knob, self._set, self._state.refuse) for knob in self.knobs[section]]
            self.inputs |= {each.knob.path: each for each in made}
            self._boxes[section].children = tuple(each.widget for each in made)
        self._show_fields(self._state.setup)

    def _set(self, path: str, value: Any) -> None:
        self._state.set(self.chosen, path, value)

    # What holds.

    def show(self) -> None:
        """Show the setup as it stands."""
        setup, chosen = self._state.setup, self.chosen
        if tuple(self.side.options) != setup.names:
            self.side.options = list(setup.names)
        self.side.value = chosen
        self.name.value = chosen
        self.add.disabled = len(setup.variants) >= MOST_VARIANTS
        self.remove.disabled = chosen == setup.base_name
        self.changes.children = tuple(self._change_rows(setup))
        self.refused.value = views.sentence(self._state.refused_at(SIDES), "problem") + "".join(
            views.sentence(f"“{name}” cannot run: {said}", "problem")
            for name, said in self._state.refusals().items()
        )
        self.settled.value = _settled(setup)
        self._show_fields(setup)

    def _change_rows(self, setup: Setup) -> list[widgets.Widget]:
        rows: list[widgets.Widget] = []
        for name in setup.names:
            changes = setup.changes(name)
            below = "the defaults" if name == setup.base_name else f"“{setup.base_name}”"
            said = "changes these fields of" if changes else "changes nothing of"
            rows.append(views.html(f"<b>{escape(name)}</b> {said} {escape(below)}"))
            buttons = [self._take_back(name, path, value) for path, value in changes.items()]
            if buttons:
                rows.append(widgets.HBox(buttons))
        return rows

    def _take_back(self, side: str, path: str, value: Any) -> widgets.Button:
        knob = find_knob(path)
        assert knob is not None, "a setup has known fields only"
        button = widgets.Button(
            description=f"{path} = {show_value(knob, value)}",
            icon="undo",
            tooltip=f"Take back: {path} of {side}",
        )
        button.on_click(lambda pressed: self._state.take_back(side, path))
        return button

    def _show_fields(self, setup: Setup) -> None:
        place, names = self.folds.selected_index, list(self.knobs)
        if place is None or place >= len(names):
            return
        config = setup.config(self.chosen)
        for knob in self.knobs[names[place]]:
            if knob.path in self.inputs:
                shown = config.get(knob.path)
                problem = self._state.refused_at(knob.path)
                self.inputs[knob.path].show(shown, self._impossible(setup, knob), problem)

    def _impossible(self, setup: Setup, knob: Knob) -> list[str]:
        """Choices with which a side that can run now could not."""
        side = self.chosen
        if not knob.choices or refusal(setup, side):
            return []
        now = setup.config(side).get(knob.path)
        changes = setup.changes(side)
        return [
            choice
            for choice in knob.choices
            if choice != now
            and refusal(with_changes(setup, side, {**changes, knob.path: choice}), side)
        ]


def _settled(setup: Setup) -> str:
    """Notes of `resolve`, and the values it filled in, for every side that can run."""
    parts = []
    for name in setup.names:
        if refusal(setup, name):
            continue
        resolved = setup.resolved(name)
        notes = [*resolved.notes]
        config = resolved.config
        for path, asked in resolved.asked.items():
            knob = find_knob(path)
            if knob is not None and path not in KEPT_OUT:
                was = "left open" if asked is None else f"asked for: {show_value(knob, asked)}"
                notes.append(f"{path}: {show_value(knob, config.get(path))} ({was})")
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(f"<p><b>{escape(name)}</b></p><ul>{items or '<li>nothing</li>'}</ul>")
    return "".join(parts)
