"""Estimate: one number, typed or picked, before the count shows. Within a factor of two is right.

Knows nothing about where the true value comes from: a number, or a function called when needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets

from widgets import theme
from widgets.panels import views
from widgets.panels.base import Panel
from widgets.progress import Progress

_NUMBER = re.compile(r"\s*([0-9][0-9,_ ]*\.?[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+)\s*([^0-9]*?)\s*")
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12,
             "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}  # fmt: skip
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def parse_number(text: str, unit: str = "") -> float:
    """A positive number as people type it: "8,192", "8e3", "8 KiB", "3.5 ms", "40%".

    Raises ValueError, in a sentence, for anything else.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"“{text.strip()}” is not a number: type for example 8192, 8e3 or 8 KiB")
    value = float(re.sub(r"[,_ ]", "", match[1]))
    factor = _factor(match[2], unit)
    if factor is None:
        expected = unit or "a plain number"
        raise ValueError(f"“{match[2]}” is not a unit known here: expected {expected}")
    if value <= 0:
        raise ValueError("Type a number above 0.")
    return value * factor


def _factor(suffix: str, unit: str) -> float | None:
    word = suffix.strip().lower()
    if word in ("", unit.lower()):
        return 1.0
    if word == "%":
        return 0.01
    if word in ("x", "times"):
        return 1.0
    if unit == "s" and word in _SECONDS:
        return _SECONDS[word]
    for ending in ("bytes", "byte", "b", unit.lower(), ""):
        if ending and not word.endswith(ending):
            continue
        prefix = word[: len(word) - len(ending)].strip()
        if prefix in _PREFIXES and (ending or prefix):
            return _PREFIXES[prefix]
    return None


class Estimate(views.Displayed):
    """A question with one number for an answer. `guess("8 KiB")` does what the button does.

    `truth` is the number, or a function that returns it when the reader has answered. `choices`
    replaces typing by a few numbers to pick from; the nearest one is right. `panels` stay hidden
    until the answer is given.
    """

    def __init__(
        self,
        question: str,
        truth: float | Callable[[], float | None],
        *,
        key: str,
        unit: str = "",
        explain: str = "",
        choices: Sequence[float] = (),
        within: float = 2.0,
        panels: Sequence[Panel] = (),
        progress: Progress | None = None,
    ) -> None:
        self.question, self.key = question, key
        self._truth, self._unit, self._explain = truth, unit, explain
        self._choices, self._within, self._panels = tuple(choices), within, tuple(panels)
        self._progress = progress or Progress()
        self.right: bool | None = None
        self.done = False
        shared: dict[str, Any] = {"description": "Your estimate"}
        shared["style"] = {"description_width": "initial"}
        self.input: Any
        if choices:
            options = [(self._show(value), value) for value in self._choices]
            shared["style"] |= {"button_width": "4.5rem"}
            # As wide as its buttons: at ipywidgets' own width they wrap below the label.
            shared["layout"] = widgets.Layout(width="max-content")
            self.input = widgets.ToggleButtons(options=options, value=None, **shared)
        else:
            hint = f"a number{f' in {unit}' if unit else ''}"
            self.input = widgets.Text(placeholder=hint, **shared)
        self.check_button = widgets.Button(
            description="Check", button_style="primary", tooltip="Check your estimate"
        )
        self.show_button = widgets.Button(
            description="Show me", tooltip="Show the value without an estimate"
        )
        self.check_button.on_click(lambda button: self._check())
        self.show_button.on_click(lambda button: self.show_me())
        self.feedback = views.html()
        self.widget = widgets.VBox(
            [
                views.html(f"<b>{escape(question)}</b>"),
                widgets.HBox(
                    [self.input, self.check_button, self.show_button],
                    layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
                ),
                self.feedback,
            ]
        )
        for panel in self._panels:
            panel.mask(self, "Hidden until you have given your estimate, or ask to be shown.")

    def guess(self, answer: str | float) -> None:
        """Answer and check, once."""
        self.input.value = answer if self._choices else str(answer)
        self._check()

    def show_me(self) -> None:
        """Show the value without an estimate; nothing is scored."""
        if not self.done and (truth := self._value()) is not None:
            self._reveal(f"It is {self._show(truth)}.", "info")

    def _check(self) -> None:
        if self.done:
            return
        if self.input.value in (None, ""):
            self.feedback.value = views.sentence("Give a number first.", "info")
            return
        try:
            guess = (
                float(self.input.value)
                if self._choices
                else parse_number(self.input.value, self._unit)
            )
        except ValueError as error:
            self.feedback.value = views.sentence(str(error), "problem")
            return
        busy = [panel for panel in self._panels if panel.worker.busy]
        if busy:
            # Waiting for the run here would hold up every other button of the page.
            self._settle(views.sentence("Noted. It is scored when the run has ended.", "info"))
            busy[0].on_result(lambda result: self._score(guess))
        elif self._value() is not None:
            self._score(guess)

    def _score(self, guess: float) -> None:
        """Say how good the guess was: once, when the value is known."""
        truth = None if self.right is not None else self._value()
        if truth is None:
            return
        if self._choices:
            nearest = min(self._choices, key=lambda value: abs(math.log(value / truth)))
            self.right = guess == nearest
        else:
            self.right = truth / self._within <= guess <= truth * self._within
        self._progress.record(self.key, "estimate", float(self.right), 1)
        off = max(guess / truth, truth / guess)
        word = "Right" if self.right else "Not so"
        how = "exactly" if off < 1.005 else f"{theme.format_ratio(off)} off"
        text = f"{word}: it is {self._show(truth)}; you said {self._show(guess)}, {how}."
        self._reveal(text, "good" if self.right else "bad")

    def _reveal(self, text: str, kind: views.Kind) -> None:
        explain = views.sentence(self._explain, "info") if self._explain else ""
        self._settle(views.sentence(text, kind) + explain)

    def _settle(self, feedback: str) -> None:
        """Take no more answers, and show the panels."""
        self.done = True
        for part in (self.input, self.check_button, self.show_button):
            part.disabled = True
        self.feedback.value = feedback
        for panel in self._panels:
            panel.unmask(self)

    def _value(self) -> float | None:
        """The true value; None, and a sentence in the panel, where there is none (yet)."""
        try:
            truth = self._truth() if callable(self._truth) else self._truth
        except RuntimeError as error:
            # A panel that has not run yet says which button to press.
            self.feedback.value = views.sentence(str(error), "problem")
            return None
        if truth is None:
            self._reveal("There is no such value here, so nothing is scored.", "info")
            return None
        return float(truth)

    def _show(self, value: float) -> str:
        if self._unit == "bytes":
            return theme.format_bytes(value)
        if self._unit == "s":
            return theme.format_seconds(value)
        if self._unit in ("x", "times"):
            return theme.format_ratio(value)
        return theme.format_rate(value, self._unit).strip()

    def __repr__(self) -> str:
        return f"Estimate: {self.question}"
