"""One input for each field of the configuration, made of what the field says about itself.

Numbers are typed, because most have no largest value; their bounds are checked by the configuration
itself. Knows nothing about sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from html import escape
from typing import Any

import ipywidgets as widgets

from minserve.bench.compare.setup import FieldValue
from minserve.bench.fields import parse_value, show_value
from minserve.config import ConfigError, Knob
from widgets.panels import views

REFUSED = "refused here"
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?")


def ungrouped(text: str) -> str:
    """A number without the commas of its thousands. Any other comma stays, to be refused: "0,5" is
    no 5."""
    given = text.strip()
    return given.replace(",", "") if _GROUPED.fullmatch(given) else text


def labelled(label: str) -> dict[str, Any]:
    """What every input has: its label, and a layout of its own, by which it can be hidden."""
    return {
        "description": label,
        "layout": widgets.Layout(width="min(36rem, 98%)"),
        "style": {"description_width": "13rem"},
    }


class FieldInput:
    """The input of one field. `changed(path, value)` hears of the reader's changes, and
    `refused(sentence, path)` of a text that stands for no value."""

    def __init__(
        self,
        knob: Knob,
        changed: Callable[[str, FieldValue], object],
        refused: Callable[[str, str], object],
    ) -> None:
        self.knob = knob
        self._changed, self._refused = changed, refused
        self.input = _input(knob)
        self._setting = False
        self.input.observe(self._heard, "value")
        # The box of a field that may be left open shows "automatic" then.
        doc = knob.doc.replace("None: ", "Automatic (left empty): ")
        doc = doc.replace(" is None", " is left empty")
        words = f"{doc} Trade-off: {knob.trade_off}."
        self._doc = f'<span style="opacity:.75;font-size:12px">{escape(words)}</span>'
        self.text = widgets.HTML(self._doc)
        self.widget = widgets.VBox([self.input, self.text])

    def show(self, value: Any, impossible: Collection[str] = (), problem: str = "") -> None:
        """Show a value that holds, and why another was refused; choices among `impossible` are
        marked."""
        self.text.value = views.sentence(problem, "problem") + self._doc
        self._setting = True
        try:
            if self.knob.choices:
                labels = [
                    (f"{choice} ({REFUSED})" if choice in impossible else choice, choice)
                    for choice in self.knob.choices
                ]
                if list(self.input.options) != labels:
                    self.input.options = labels
                self.input.value = value
            elif self.knob.type is bool:
                self.input.value = bool(value)
            else:
                self.input.value = "" if value is None else show_value(self.knob, value)
        finally:
            self._setting = False

    def _heard(self, change: dict[str, Any]) -> None:
        if self._setting:
            return
        value = change["new"]
        if isinstance(self.input, widgets.Text):
            try:
                value = parse_value(self.knob, ungrouped(value), option="")
            except ConfigError as error:
                self._refused(str(error), self.knob.path)
                return
        self._changed(self.knob.path, value)


def _input(knob: Knob) -> Any:
    name = knob.path.rsplit(".", 1)[-1]
    shared = labelled(name)
    if knob.type is bool:
        return widgets.Checkbox(**shared | {"style": {}}, indent=False)
    if knob.choices:
        labels = [(choice, choice) for choice in knob.choices]
        return widgets.Dropdown(options=labels, **shared)
    hint = "automatic" if knob.optional else ""
    unit = "such as 64MiB" if knob.unit == "bytes" else f"in {knob.unit}" if knob.unit else ""
    return widgets.Text(placeholder=", ".join(filter(None, [hint, unit])), continuous_update=False,
                        **shared)  # fmt: skip
