"""Predict, then look: the reader commits to a direction, a factor and a reason before any result.

The linked panels' results are not in the page until *Commit* or *Show me*. What was left untouched
is never scored. Knows nothing about runs: it reads a comparison's verdicts.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets

from widgets import theme
from widgets.panels import views
from widgets.panels.base import Panel
from widgets.panels.result import CompareResult
from widgets.panels.verdict import Verdict
from widgets.progress import Progress

TOLERANCE = 1.25
"""A factor within the measured spread, or this close to it, is right."""

DIRECTIONS: Mapping[str, str] = {"goes down": "down", "stays the same": "same", "goes up": "up"}
_PARTS = ("direction", "factor", "reason")
_HIDDEN = "Hidden until you commit to a prediction above, or ask to be shown."


@dataclass(frozen=True)
class Reason:
    """One of three explanations to choose from."""

    text: str
    feedback: str
    """Why it is right, or what it misses."""
    correct: bool = False


@dataclass(frozen=True)
class Question:
    """What to predict about one quantity of the comparison."""

    metric: str
    """A metric of the Compare panel: "tpot_p50_s", "peak_kv_bytes"."""
    text: str
    reasons: tuple[Reason, ...]
    largest_factor: float = 100.0

    def __post_init__(self) -> None:
        if len(self.reasons) != 3 or sum(reason.correct for reason in self.reasons) != 1:
            raise ValueError(
                f"Question({self.metric!r}): expected three reasons, one of them right"
            )


@dataclass(frozen=True)
class Guess:
    """What the reader chose; None for what was left untouched."""

    direction: str | None
    factor: float | None
    """At least 1; the direction says whether up or down."""
    reason: int | None

    @property
    def ratio(self) -> float | None:
        """The predicted quantity, side B over side A."""
        if self.direction == "same":
            return 1.0
        if self.direction is None or self.factor is None:
            return None
        return self.factor if self.direction == "up" else 1 / self.factor

    @property
    def touched(self) -> bool:
        """True when anything was chosen."""
        return self.direction is not None or self.factor is not None or self.reason is not None


@dataclass(frozen=True)
class Score:
    """Part -> right, wrong, or None where nothing was predicted."""

    direction: bool | None
    factor: bool | None
    reason: bool | None

    @property
    def points(self) -> int:
        """Parts that were right."""
        return sum(getattr(self, part) is True for part in _PARTS)


def score(question: Question, guess: Guess, verdict: Verdict) -> Score:
    """Compare a guess with what was measured; inside the measured spread counts as right."""
    ratio = guess.ratio
    inside = verdict.contains(ratio) if ratio is not None else _leaves_open(guess, verdict)
    direction = None if guess.direction is None else guess.direction == verdict.direction or inside
    close = ratio is not None and verdict.contains(ratio, TOLERANCE)
    return Score(
        direction=direction,
        factor=None if ratio is None else close,
        reason=None if guess.reason is None else question.reasons[guess.reason].correct,
    )


def _leaves_open(guess: Guess, verdict: Verdict) -> bool:
    """Whether pairs that gave no verdict reach clearly into the direction that was predicted."""
    if verdict.outcome in ("better", "worse"):
        return False
    if guess.direction == "up":
        return verdict.ratio.max >= TOLERANCE
    return guess.direction == "down" and verdict.ratio.min <= 1 / TOLERANCE


class _Form:
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

    def lock(self) -> None:
        """Take no more changes."""
        for part in self.inputs:
            part.disabled = True

    def _touch(self, change: Any) -> None:
        self._factor_touched = True

    def _pointed(self, change: Any) -> None:
        self.factor.disabled = DIRECTIONS.get(self.direction.value) == "same"


class Predict(views.Displayed):
    """Questions about a Compare panel, asked before its results can be seen.

    `key` is where the score is kept ("45a.flip"). `also` lists further panels to hide meanwhile.
    """

    def __init__(
        self,
        compare: Panel,
        questions: Sequence[Question],
        *,
        key: str,
        also: Sequence[Panel] = (),
        progress: Progress | None = None,
    ) -> None:
        self.key = key
        self.compare = compare
        self._panels = (compare, *also)
        self._progress = progress or Progress()
        self._lock = threading.RLock()
        self.forms = [_Form(question) for question in questions]
        self.committed: tuple[Guess, ...] | None = None
        self.revealed = False
        self.scores: tuple[Score, ...] | None = None
        self.commit_button = widgets.Button(description="Commit", button_style="primary",
                                            tooltip="Commit to this prediction")  # fmt: skip
        self.show_button = widgets.Button(
            description="Show me", tooltip="Show the results without a prediction"
        )
        self.commit_button.on_click(lambda button: self.commit())
        self.show_button.on_click(lambda button: self.show_me())
        self.status = views.html()
        self.feedback = views.html()
        buttons = widgets.HBox([self.commit_button, self.show_button])
        heading = views.html('<b role="heading" aria-level="4">Predict</b>')
        self.widget = widgets.VBox(
            [heading, *(form.widget for form in self.forms), buttons, self.status, self.feedback]
        )
        for panel in self._panels:
            panel.mask(self, _HIDDEN)
        compare.on_result(self._hear)

    def commit(self) -> None:
        """Fix the prediction and show the results; refused while nothing was chosen."""
        with self._lock:
            if self.revealed:
                return
            guesses = tuple(form.guess for form in self.forms)
            if not any(guess.touched for guess in guesses):
                text = "Choose something first. A prediction left as it was does not count."
                self.status.value = views.sentence(text, "info")
                return
            self.committed = guesses
            self._reveal()
            if self.compare.last is not None:
                self._score(self.compare.last)
            else:
                self.status.value = views.sentence("Committed. Now run it and see.", "info")

    def show_me(self) -> None:
        """Show the results without a prediction; nothing is scored."""
        with self._lock:
            if not self.revealed:
                self._reveal()
                self.status.value = views.sentence("Shown without a prediction: no score.", "info")

    def _reveal(self) -> None:
        self.revealed = True
        self.commit_button.disabled = self.show_button.disabled = True
        for form in self.forms:
            form.lock()
        for panel in self._panels:
            panel.unmask(self)

    def _hear(self, result: CompareResult) -> None:
        with self._lock:
            if self.committed is not None and self.scores is None:
                self._score(result)

    def _score(self, result: CompareResult) -> None:
        assert self.committed is not None
        scores, parts = [], []
        for form, guess in zip(self.forms, self.committed, strict=True):
            measured = result.metrics.get(form.question.metric)
            if measured is None:
                raise ValueError(f"the runs say nothing about {form.question.metric!r}")
            one = score(form.question, guess, measured.verdict)
            scores.append(one)
            parts.append(_feedback(form.question, guess, one, measured.sentence()))
        self.scores = tuple(scores)
        points, out_of = sum(one.points for one in scores), len(_PARTS) * len(scores)
        self._progress.record(self.key, "predict", points, out_of)
        self.status.value = views.sentence(f"You had {points} of {out_of}.", "info")
        self.feedback.value = "".join(parts)

    def __repr__(self) -> str:
        return "Predict: " + " · ".join(form.question.text for form in self.forms)


def _feedback(question: Question, guess: Guess, one: Score, measured: str) -> str:
    lines = [f"<p style='margin:.5rem 0 .2rem'><b>{escape(measured)}.</b></p>"]
    said = {
        "direction": guess.direction and f"You said it {_words(guess.direction)}",
        "factor": guess.ratio and f"You said {theme.format_ratio(guess.ratio)}",
        "reason": None
        if guess.reason is None
        else f"{question.reasons[guess.reason].text} {question.reasons[guess.reason].feedback}",
    }
    for part in _PARTS:
        right = getattr(one, part)
        if right is None:
            lines.append(views.sentence(f"{part}: not predicted, not scored"))
        else:
            word = "right" if right else "not so"
            text = f"{part}, {word}: {said[part]}"
            lines.append(views.sentence(text, "good" if right else "bad"))
    if one.reason is not True:
        best = next(reason for reason in question.reasons if reason.correct)
        lines.append(views.sentence(f"The reason: {best.text} {best.feedback}", "info"))
    return "".join(lines)


def _words(direction: str) -> str:
    return next(words for words, value in DIRECTIONS.items() if value == direction)
