"""Predict, then look: the reader commits to a direction, a factor and a reason before any result.

The linked panels' results are not in the page until *Commit* or *Show me*, and their runs wait for
it. What was left untouched is never scored, nor is anything while the machine is too busy for a
verdict. A commitment survives a restart. Knows nothing about runs: it reads the verdicts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import ipywidgets as widgets

from widgets import theme
from widgets.panels import views
from widgets.panels.base import Panel
from widgets.panels.comparison.result import CompareResult
from widgets.panels.questions.feedback import answered, feedback
from widgets.panels.questions.form import Form
from widgets.panels.questions.guess import PARTS, Guess, Score, score
from widgets.scoring.progress import Progress
from widgets.scoring.questions import Prediction, find_prediction, fingerprint
from widgets.scoring.scores import Chosen, Commit

_HIDDEN = "Hidden until you commit to a prediction above, or ask to be shown."
_UNTIL = "you commit to a prediction above"
_BUSY = "Not scored yet: this machine was too busy for a verdict. Run again."


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
        self.forms = [Form(question) for question in self.asked.questions]
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
        compare.on_unfinished(self._hear_no_result)

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
                self.feedback.value = "".join(answered(form.question) for form in self.forms)
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

    def _hear_no_result(self) -> None:
        with self._lock:
            if self.committed is not None and None in self.scores:
                text = "Committed, not scored yet: the run gave no result. Run it again and see."
                self.status.value = views.sentence(text, "info")

    def _look(self, result: CompareResult) -> None:
        """Answer every question from a result; score what has a verdict and is not scored yet."""
        found, parts = list(self.scores), []
        for number, form in enumerate(self.forms):
            measured = result.metrics.get(form.question.metric)
            if measured is None:
                raise ValueError(f"the runs say nothing about {form.question.metric!r}")
            if self.committed is None:
                parts.append(answered(form.question, measured.sentence()))
                continue
            guess = self.committed[number]
            if found[number] is None:
                found[number] = score(form.question, guess, measured.verdict)
            parts.append(feedback(form.question, guess, found[number], measured.sentence()))
        self.feedback.value = "".join(parts)
        if self.committed is not None:
            self.scores = tuple(found)
            self._count()

    def _count(self) -> None:
        done = [one for one in self.scores if one is not None]
        points, out_of = sum(one.points for one in done), len(PARTS) * len(done)
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
