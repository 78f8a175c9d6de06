"""Estimate: one number, typed or picked, before the count shows. Within a factor of two is right.

The first answer counts; further ones are answered too. Knows nothing about where the true value
comes from: a number, a function, or an expression of the question file over a chapter's names.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets

from widgets import theme
from widgets.crossing import crossing
from widgets.panels import views
from widgets.panels.base import NotYetError, Panel, without_waiting
from widgets.scoring.progress import Progress
from widgets.scoring.questions import Expression, Quantity, find_quantity, fingerprint
from widgets.scoring.scores import Chosen, Commit

_NUMBER = re.compile(
    r"\s*(-?(?:[0-9]{1,3}(?:[,_ ][0-9]{3})+|[0-9]+)\.?[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+)"
    r"\s*([^0-9]*?)\s*"
)
"""A number and its unit; commas, spaces and underscores stand between thousands."""
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12,
             "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30, "ti": 2.0**40}  # fmt: skip
_HELPERS: Mapping[str, Any] = {"crossing": crossing, "format_seconds": theme.format_seconds}
"""What expressions may use beside the chapter's names."""
_HIDDEN = "Hidden until you have given your estimate, or ask to be shown."
_UNTIL = "you have given your estimate above"
_TIMES = "x", "times"
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def parse_number(text: str, unit: str = "") -> float:
    """A positive number as people type it: "8,192", "8e3", "8 KiB", "3.5 ms", "40%".

    Raises ValueError, in a sentence, for anything else.
    """
    match = _NUMBER.fullmatch(text)
    if match is None and re.search(r"[0-9],[0-9]", text):
        raise ValueError(
            f"“{text.strip()}” is not clear: type 1.5 with a point, and 8192 or 8,192 for thousands"
        )
    if match is None:
        raise ValueError(f"“{text.strip()}” is not a number: type for example 8192, 8e3 or 8 KiB")
    value = float(re.sub(r"[,_ ]", "", match[1]))
    factor = _factor(match[2], unit)
    if factor is None:
        expected = unit or "a plain number"
        raise ValueError(f"“{match[2]}” is not a unit known here: expected {expected}")
    if value * factor <= 0:
        raise ValueError("Type a number above 0.")
    if math.isinf(value * factor):
        raise ValueError("Type a number that is not so large.")
    return value * factor


def _factor(suffix: str, unit: str) -> float | None:
    word = suffix.strip().lower()
    if word in ("", unit.lower()):
        return 1.0
    if word == "%":
        return 0.01
    if word in _TIMES:
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

    `asked` is the key of the question in `labs/questions/` ("45b.ridge"), where the score is kept
    too. `truth` is the number, a function that returns it, or the chapter's names (`globals()`) for
    the expression in the question file. `panels` stay hidden until the answer is given, and their
    runs wait for it.
    """

    def __init__(
        self,
        asked: str | Quantity,
        truth: float | Callable[[], float | None] | Mapping[str, Any],
        *,
        panels: Sequence[Panel] = (),
        progress: Progress | None = None,
    ) -> None:
        self.asked = find_quantity(asked) if isinstance(asked, str) else asked
        self.key = self.asked.key
        self._panels = tuple(panels)
        self._sources = list(panels)
        self._text = self.asked.text
        if isinstance(truth, Mapping):
            truth = {**_HELPERS, **truth}
            if "{" in self._text:
                self._text = str(Expression(f"f{self._text!r}", truth, self.key).value())
            expression = Expression(self.asked.truth, truth, self.key)
            named = [each for each in expression.names.values() if isinstance(each, Panel)]
            self._sources += [panel for panel in named if panel not in self._sources]
            truth = expression.value
        self._truth = truth
        self._progress = progress or Progress()
        self._lock = threading.RLock()
        self.first: float | None = None
        """The answer that counts."""
        self.right: bool | None = None
        """Whether that was right; None while it is not known."""
        self.shown = False
        self._waiting = False
        self._recorded = False
        self._build()
        if not self._restored():
            for panel in self._panels:
                # By key: the cell may run again, and this replaces what it masked before.
                panel.mask(self.key, _HIDDEN, _UNTIL)
        for panel in self._sources:
            panel.on_result(lambda result: self._settle())

    @property
    def done(self) -> bool:
        """True once an answer was given or shown."""
        return self.first is not None or self.shown

    def guess(self, answer: str | float) -> None:
        """Answer and check; the first answer is the one that counts."""
        if self._waiting or self.shown:
            return
        self.input.value = answer if self.asked.choices else str(answer)
        self._check()

    def show_me(self) -> None:
        """Show the value without an estimate, or after one; nothing is scored."""
        if self._waiting or self.shown or not self._can_be_known():
            return
        self.shown = True
        self._keep()
        self._open()

    def _build(self) -> None:
        shared: dict[str, Any] = {"description": "Your estimate"}
        shared["style"] = {"description_width": "initial"}
        self.input: Any
        if self.asked.choices:
            options = [(self._show(value), value) for value in self.asked.choices]
            shared["style"] |= {"button_width": "4.5rem"}
            # As wide as its buttons: at ipywidgets' own width they wrap below the label.
            shared["layout"] = widgets.Layout(width="max-content")
            self.input = widgets.ToggleButtons(options=options, value=None, **shared)
        else:
            unit = self.asked.unit
            hint = "a factor, such as 2" if unit in _TIMES else f"a number in {unit}"
            hint = hint if unit else "a number"
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
        row = widgets.HBox(
            [self.input, self.check_button, self.show_button],
            layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
        )
        text = views.html(f"<b>{escape(self._text)}</b>")
        self.widget = widgets.VBox([text, row, self.feedback])

    def _check(self) -> None:
        if self._waiting or self.shown:
            return
        if self.input.value in (None, ""):
            self.feedback.value = views.sentence("Give a number first.", "info")
            return
        try:
            guess = self._typed()
        except ValueError as error:
            self.feedback.value = views.sentence(str(error), "problem")
            return
        if not self._can_be_known():
            return
        if self.first is None:
            self.first = guess
            self._keep()
        self._open()

    def _typed(self) -> float:
        """The number that stands in the input. Raises ValueError."""
        if self.asked.choices:
            return float(self.input.value)
        return parse_number(self.input.value, self.asked.unit)

    def _can_be_known(self) -> bool:
        """Whether there is a value, or a run that will give it; if not, a sentence says why."""
        try:
            self._value()
        except NotYetError:
            return True
        except RuntimeError as error:
            # A panel that has not run yet says which button to press.
            self.feedback.value = views.sentence(str(error), "problem")
            return False
        return True

    def _open(self) -> None:
        """Show the panels, which begins runs that waited; answer now, or when they have ended."""
        with self._lock:
            self._wait_for_a_run()
        for panel in self._panels:
            panel.unmask(self.key)
        self._settle()

    def _wait_for_a_run(self) -> None:
        self._waiting = True
        for part in (self.input, self.check_button, self.show_button):
            part.disabled = True
        text = "It is shown" if self.shown else "Noted. It is compared"
        self.feedback.value = views.sentence(f"{text} when the run has ended.", "info")

    def _settle(self) -> None:
        """Answer what waits for the value, if the value is known by now."""
        with self._lock:
            if not self._waiting:
                return
            try:
                truth = self._value()
            except RuntimeError:
                return
            self._waiting = False
            if truth is None:
                self.shown = True
                self._say("There is no such value here, so nothing is scored.", "info")
            elif self.shown:
                self._say(f"It is {self._show(truth)}.", "info")
            else:
                self._judge(self._typed(), truth)

    def _judge(self, guess: float, truth: float) -> None:
        """Say how good an answer is; the first one is scored."""
        right = self._is_right(guess, truth)
        again = self.right is not None
        if not again:
            self.right = self._is_right(self.first or guess, truth)
            if not self._recorded:
                self._recorded = True
                # A panel of the same cell, from before it ran again, hears of the run too.
                known = self._progress.commit_of(self.key, fingerprint(self.asked))
                if known is None or not known.scored:
                    self._progress.record(self.key, "estimate", float(self.right), 1)
                    self._keep()
        off = max(guess / truth, truth / guess)
        if right:
            how = "exactly" if off < 1.005 else f"{theme.format_ratio(off)} off"
            text = f"Right: it is {self._show(truth)}; you said {self._show(guess)}, {how}."
        else:
            where = "higher" if truth > guess else "lower"
            text = f"Not so: it is {theme.format_ratio(off)} {where} than {self._show(guess)}."
        if not right:
            text += " You may try again; the first answer counts."
        elif again and not self.right:
            text += " The first answer counts."
        self._say(text, "good" if right else "bad", closed=right)

    def _is_right(self, guess: float, truth: float) -> bool:
        if self.asked.choices:
            return guess == min(self.asked.choices, key=lambda each: abs(math.log(each / truth)))
        return truth / self.asked.within <= guess <= truth * self.asked.within

    def _say(self, text: str, kind: views.Kind, closed: bool = True) -> None:
        """Say it, with the explanation below; unless `closed`, another answer may be given."""
        explain = f"<div style='opacity:.8'>{views.sentence(self.asked.explain)}</div>"
        self.feedback.value = views.sentence(text, kind) + (explain if self.asked.explain else "")
        for part in (self.input, self.check_button, self.show_button):
            part.disabled = closed

    def _keep(self) -> None:
        chosen = () if self.first is None else (Chosen(number=self.first),)
        self._progress.keep(
            Commit(self.key, fingerprint(self.asked), chosen, self.shown, self._recorded)
        )

    def _restored(self) -> bool:
        """Take up what was answered before a restart; False where there is nothing."""
        if theme.headless():
            return False
        found = self._progress.commit_of(self.key, fingerprint(self.asked))
        first = found.chosen[0].number if found is not None and found.chosen else None
        if found is None or (first is None and not found.shown):
            return False
        if first is not None and self.asked.choices and first not in self.asked.choices:
            return False
        self.first, self.shown, self._recorded = first, found.shown, found.scored
        if first is not None:
            self.input.value = first if self.asked.choices else f"{first:.15g}"
        self._wait_for_a_run()
        self._settle()
        return True

    def _value(self) -> float | None:
        """The true value; None where there is none.

        Raises NotYetError while a run goes on, RuntimeError where one has to be started.
        """
        with without_waiting():
            truth = self._truth() if callable(self._truth) else self._truth
        # Nothing is a factor of two away from zero, nor from what is no number.
        known = truth is not None and math.isfinite(truth) and truth > 0
        return float(truth) if known else None

    def _show(self, value: float) -> str:
        if self.asked.unit == "bytes":
            return theme.format_bytes(value)
        if self.asked.unit == "s":
            return theme.format_seconds(value)
        if self.asked.unit in _TIMES:
            return theme.format_ratio(value)
        return theme.format_rate(value, self.asked.unit).strip()

    def __repr__(self) -> str:
        return f"Estimate: {self._text}"
