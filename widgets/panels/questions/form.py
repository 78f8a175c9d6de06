"""The inputs of one question of a prediction: a direction, a factor and a reason."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import ipywidgets as widgets

from widgets.panels import views
from widgets.panels.questions.guess import DIRECTIONS, Guess, direction_words
from widgets.scoring.questions import Question


class Form:
    """The inputs of one question."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self._factor_touched = False
        wide = widgets.Layout(width="auto", max_width="60rem")
        self.direction = widgets.RadioButtons(
            options=list(DIRECTIONS), value=None, description="Direction", layout=wide
        )
        self.factor = widgets.FloatLogSlider(
            value=1.0, base=10, min=0, max=math.log10(question.largest_factor), step=0.02,
            description="Factor", readout_format=".2f", layout=widgets.Layout(width="30rem"),
        )  # fmt: skip
        reasons = [(reason.text, index) for index, reason in enumerate(question.reasons)]
        self.reason = widgets.RadioButtons(
            options=reasons, value=None, description="Because", layout=wide
        )
        self.factor.observe(self._touch, "value")
        self.direction.observe(self._pointed, "value")
        text = views.html(f"<b>{escape(question.text)}</b>")
        self.inputs = (self.direction, self.factor, self.reason)
        self.widget = widgets.VBox([text, *self.inputs])

    @property
    def guess(self) -> Guess:
        """As it stands."""
        return Guess(
            direction=DIRECTIONS.get(self.direction.value),
            factor=float(self.factor.value) if self._factor_touched else None,
            reason=self.reason.value,
        )

    def put(self, guess: Guess) -> None:
        """Set the inputs to a guess."""
        self.direction.value = None if guess.direction is None else direction_words(guess.direction)
        self.reason.value = guess.reason
        self.factor.value = guess.factor or 1.0
        self._factor_touched = guess.factor is not None

    def lock(self, locked: bool = True) -> None:
        """Take no more changes, or take them again."""
        for part in self.inputs:
            part.disabled = locked
        self._pointed(None)

    def _touch(self, change: Any) -> None:
        self._factor_touched = True

    def _pointed(self, change: Any) -> None:
        same = DIRECTIONS.get(self.direction.value) == "same"
        self.factor.disabled = same or self.direction.disabled
