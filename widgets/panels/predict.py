"""Predict, then look: the reader commits to a direction, a factor and a reason before any result.

The linked panels' results are not in the page until *Commit* or *Show me*, and their runs wait for
it. What was left untouched is never scored, nor is anything while the machine is too busy for a
verdict. A commitment survives a restart. Knows nothing about runs: it reads the verdicts.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import ipywidgets as widgets

from widgets import theme
from widgets.panels import views
from widgets.panels.base import Panel
from widgets.panels.result import CompareResult
from widgets.panels.verdict import Verdict
from widgets.progress import Progress
from widgets.questions import Prediction, Question, find_prediction, fingerprint
from widgets.scores import Chosen, Commit

TOLERANCE = 1.25
"""A factor within the measured spread, or this close to it, is right."""

DIRECTIONS: Mapping[str, str] = {"goes down": "down", "stays the same": "same", "goes up": "up"}
_PARTS = ("direction", "factor", "reason")
_HIDDEN = "Hidden until you commit to a prediction above, or ask to be shown."
_UNTIL = "you commit to a prediction above"
_BUSY = "Not scored yet: this machine was too busy for a verdict. Run again."


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


def direction_of(verdict: Verdict) -> Literal["up", "down", "same"] | None:
    """Where the quantity went on side B; None where the runs give no verdict.

    An exact quantity that is neither better nor worse has stayed the same.
    """
    if verdict.outcome in ("better", "worse"):
        return "up" if (verdict.outcome == "better") == (verdict.better == "higher") else "down"
    return "same" if verdict.exact or str(verdict.outcome) == "same" else None


def score(question: Question, guess: Guess, verdict: Verdict) -> Score | None:
    """Compare a guess with what was measured; inside the measured spread counts as right.

    None where the runs give no verdict: then nothing is scored.
    """
    went = direction_of(verdict)
    if went is None:
        return None
    ratio = guess.ratio
    inside = ratio is not None and verdict.contains(ratio)
    direction = None if guess.direction is None else guess.direction == went or inside
    return Score(
        direction=direction,
        # A small effect is close to none, and to its opposite: no factor of the wrong direction.
        factor=None if ratio is None else bool(direction) and verdict.contains(ratio, TOLERANCE),
        reason=None if guess.reason is None else question.reasons[guess.reason].correct,
    )


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

    def put(self, guess: Guess) -> None:
        """Set the inputs to a guess."""
        self.direction.value = None if guess.direction is None else _words(guess.direction)
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


class Predict(views.Displayed):
    """Questions about a Compare panel, asked before its results can be seen.

    `asked` is the key of the questions in `labs/questions/` ("45a.flip"), where the score is kept
    too. `also` lists further panels to hide meanwhile.
    """

    def __init__(
        self,
        compare: Panel,
        asked: str | Prediction,
        *,
        also: Sequence[Panel] = (),
        progress: Progress | None = None,
    ) -> None:
        self.asked = find_prediction(asked) if isinstance(asked, str) else asked
        self.key = self.asked.key
        self.compare = compare
        self._panels = (compare, *also)
        self._progress = progress or Progress()
        self._lock = threading.RLock()
        self.forms = [_Form(question) for question in self.asked.questions]
        self.committed: tuple[Guess, ...] | None = None
        self.revealed = False
        self.scores: tuple[Score | None, ...] = (None,) * len(self.forms)
        """One a question; None until it is scored."""
        self._recorded = False
        self.commit_button = widgets.Button(description="Commit", button_style="primary",
                                            tooltip="Commit to this prediction")  # fmt: skip
        self.show_button = widgets.Button(
            description="Show me", tooltip="Show the results and reasons without a prediction"
        )
        self.again_button = widgets.Button(
            description="Predict again", disabled=True,
            tooltip="Hide the results and predict again; the first score is kept",
        )  # fmt: skip
        self.commit_button.on_click(lambda button: self.commit())
        self.show_button.on_click(lambda button: self.show_me())
        self.again_button.on_click(lambda button: self.again())
        self.status = views.html()
        self.feedback = views.html()
        buttons = widgets.HBox(
            [self.commit_button, self.show_button, self.again_button],
            layout=widgets.Layout(flex_flow="row wrap"),
        )
        heading = views.html('<b role="heading" aria-level="4">Predict</b>')
        self.widget = widgets.VBox(
            [heading, *(form.widget for form in self.forms), buttons, self.status, self.feedback]
        )
        if not self._restored():
            self._hide()
        compare.on_result(self._hear)

    def commit(self) -> None:
        """Fix the prediction, show the results and begin a run that waited for it.

        Refused while nothing was chosen.
        """
        with self._lock:
            if self.revealed:
                return
            guesses = tuple(form.guess for form in self.forms)
            if not any(guess.touched for guess in guesses):
                text = "Choose something first. A prediction left as it was does not count."
                self.status.value = views.sentence(text, "info")
                return
            self.committed = guesses
            self._keep()
            waits = self.compare.under_way
            text = "Committed. " + ("Watch the run." if waits else "Now run it and see.")
            self.status.value = views.sentence(text, "info")
        self._reveal()

    def show_me(self) -> None:
        """Show the results and the reasons without a prediction; nothing is scored."""
        with self._lock:
            if self.revealed:
                return
            self._keep(shown=True)
            self.status.value = views.sentence("Shown without a prediction: no score.", "info")
        self._reveal()

    def again(self) -> None:
        """Hide the results and ask anew; the first score is kept."""
        with self._lock:
            if not self.revealed:
                return
            self.committed, self.revealed, self._recorded = None, False, False
            self.scores = (None,) * len(self.forms)
            for form in self.forms:
                form.lock(False)
                form.put(Guess(None, None, None))
            self.commit_button.disabled = self.show_button.disabled = False
            self.again_button.disabled = True
            self.feedback.value = ""
            text = "Predict again: your first score is kept, a better one is noted beside it."
            self.status.value = views.sentence(text, "info")
            self._progress.forget(self.key)
        self._hide()

    def _hide(self) -> None:
        for panel in self._panels:
            # By key: the cell may run again, and this replaces what it masked before.
            panel.mask(self.key, _HIDDEN, _UNTIL)

    def _reveal(self) -> None:
        """Lock, show what is known, and let the panels run: outside the lock, they tell us."""
        with self._lock:
            self.revealed = True
            self.commit_button.disabled = self.show_button.disabled = True
            self.again_button.disabled = False
            for form in self.forms:
                form.lock()
            if self.compare.last is not None:
                self._look(self.compare.last)
            elif self.committed is None:
                self.feedback.value = "".join(_answered(form.question) for form in self.forms)
        for panel in self._panels:
            panel.unmask(self.key)

    def _keep(self, shown: bool = False) -> None:
        chosen = [Chosen(g.direction, g.factor, g.reason) for g in self.committed or ()]
        self._progress.keep(
            Commit(self.key, fingerprint(self.asked), tuple(chosen), shown, self._recorded)
        )

    def _restored(self) -> bool:
        """Take up what was committed to before a restart; False where there is nothing."""
        if theme.headless():
            return False
        found = self._progress.commit_of(self.key, fingerprint(self.asked))
        if found is None or not (found.shown or _fits(found, self.asked)):
            return False
        if found.shown:
            text = "Shown earlier without a prediction: no score."
        else:
            text = "This is your prediction from before."
            self._recorded = found.scored
            self.committed = tuple(Guess(c.direction, c.number, c.option) for c in found.chosen)
            for form, guess in zip(self.forms, self.committed, strict=True):
                form.put(guess)
        self.status.value = views.sentence(text, "info")
        self._reveal()
        return True

    def _hear(self, result: CompareResult) -> None:
        with self._lock:
            if self.revealed and None in self.scores:
                self._look(result)

    def _look(self, result: CompareResult) -> None:
        """Answer every question from a result; score what has a verdict and is not scored yet."""
        found, parts = list(self.scores), []
        for number, form in enumerate(self.forms):
            measured = result.metrics.get(form.question.metric)
            if measured is None:
                raise ValueError(f"the runs say nothing about {form.question.metric!r}")
            if self.committed is None:
                parts.append(_answered(form.question, measured.sentence()))
                continue
            guess = self.committed[number]
            if found[number] is None:
                found[number] = score(form.question, guess, measured.verdict)
            parts.append(_feedback(form.question, guess, found[number], measured.sentence()))
        self.feedback.value = "".join(parts)
        if self.committed is not None:
            self.scores = tuple(found)
            self._count()

    def _count(self) -> None:
        done = [one for one in self.scores if one is not None]
        points, out_of = sum(one.points for one in done), len(_PARTS) * len(done)
        if len(done) < len(self.scores):
            text = f"{_BUSY} So far you had {points} of {out_of}." if done else _BUSY
        else:
            text = f"You had {points} of {out_of}."
            if not self._recorded:
                self._recorded = True
                # A panel of the same cell, from before it ran again, hears of the run too.
                known = self._progress.commit_of(self.key, fingerprint(self.asked))
                if known is None or not known.scored:
                    self._progress.record(self.key, "predict", points, out_of)
                    self._keep()
        self.status.value = views.sentence(text, "info")

    def __repr__(self) -> str:
        return "Predict: " + " · ".join(form.question.text for form in self.forms)


def _fits(commit: Commit, asked: Prediction) -> bool:
    """Whether a file's commit can be one to these questions."""
    return len(commit.chosen) == len(asked.questions) and all(
        (chosen.option is None or chosen.option < len(question.reasons))
        and (chosen.number is None or 1 <= chosen.number <= question.largest_factor * 1.01)
        for chosen, question in zip(commit.chosen, asked.questions, strict=True)
    )


def _heading(text: str) -> str:
    return f"<p style='margin:.5rem 0 .2rem'><b>{escape(text)}</b></p>"


def _answered(question: Question, measured: str = "") -> str:
    """All reasons, with which is right and why; with what was measured where that is known."""
    lines = [_heading(f"{measured}." if measured else question.text)]
    for reason in question.reasons:
        text = f"{'right' if reason.correct else 'not so'}: {reason.text} {reason.feedback}"
        lines.append(views.sentence(text, "good" if reason.correct else "plain"))
    return "".join(lines)


def _factor(guess: Guess) -> str:
    """With its direction: 3x up is wrong where the quantity went 3x down."""
    way = f" {guess.direction}" if guess.direction in ("up", "down") else ""
    return f"a factor of {theme.format_ratio(guess.factor or 1.0)}{way}"


def _feedback(question: Question, guess: Guess, one: Score | None, measured: str) -> str:
    lines = [_heading(f"{measured}.")]
    chosen = None if guess.reason is None else question.reasons[guess.reason]
    said = {
        "direction": guess.direction and f"You said it {_words(guess.direction)}",
        "factor": guess.ratio and f"You said {_factor(guess)}",
        "reason": chosen and f"{chosen.text} {chosen.feedback}",
    }
    for part in _PARTS:
        # A reason is right or wrong whatever the machine was busy with.
        right = chosen and chosen.correct if part == "reason" else one and getattr(one, part)
        if said[part] is None:
            lines.append(views.sentence(f"{part}: not predicted, not scored"))
        elif right is None:
            lines.append(views.sentence(f"{part}, not scored yet: {said[part]}"))
        else:
            text = f"{part}, {'right' if right else 'not so'}: {said[part]}"
            lines.append(views.sentence(text, "good" if right else "bad"))
    if chosen is None or not chosen.correct:
        best = next(reason for reason in question.reasons if reason.correct)
        # The feedback answers the reader who chose it; here it explains.
        why = re.sub(r"^Yes[:.,] *", "", best.feedback)
        text = f"The reason: {best.text} {why[:1].upper()}{why[1:]}"
        lines.append(views.sentence(text, "info"))
    return "".join(lines)


def _words(direction: str) -> str:
    return next(words for words, value in DIRECTIONS.items() if value == direction)
