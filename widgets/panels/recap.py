"""Recap: a handful of choices with feedback for every answer, and the chapter's ledger line.

The first answer to each question counts; further ones may be tried for their feedback. Knows
nothing about the chapter it closes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import ipywidgets as widgets

from widgets.panels import views
from widgets.progress import Progress


@dataclass(frozen=True)
class Answer:
    """One answer to choose, and what to say to whoever chooses it."""

    text: str
    feedback: str
    correct: bool = False


@dataclass(frozen=True)
class Choice:
    """One question of the recap."""

    text: str
    answers: tuple[Answer, ...]

    def __post_init__(self) -> None:
        if len(self.answers) < 2 or sum(answer.correct for answer in self.answers) != 1:
            raise ValueError(f"Choice({self.text!r}): expected several answers, one of them right")
        if not all(answer.feedback for answer in self.answers):
            raise ValueError(f"Choice({self.text!r}): every answer needs its feedback")


@dataclass(frozen=True)
class Ledger:
    """What a chapter leaves behind, in one line."""

    invariant: str
    wins: str
    loses: str
    measured: str
    """How it was measured."""

    def words(self) -> dict[str, str]:
        """Column -> text."""
        return {
            "invariant": self.invariant,
            "where it wins": self.wins,
            "where it loses": self.loses,
            "how it was measured": self.measured,
        }


class _Item:
    def __init__(self, number: int, choice: Choice, answered: Any) -> None:
        self.choice = choice
        self.first: bool | None = None
        options = [(answer.text, index) for index, answer in enumerate(choice.answers)]
        self.input = widgets.RadioButtons(
            options=options, value=None, description=f"Question {number}",
            layout=widgets.Layout(width="auto", max_width="60rem"),
            style={"description_width": "initial"},
        )  # fmt: skip
        # A button, because arrow keys move through radio buttons by selecting each.
        self.button = widgets.Button(
            description="Answer", tooltip=f"Answer question {number}: {choice.text}"
        )
        self.button.on_click(lambda button: self.answer())
        self.feedback = views.html()
        self._answered = answered
        text = views.html(f"<b>{number}. {escape(choice.text)}</b>")
        self.widget = widgets.VBox([text, self.input, self.button, self.feedback])

    def answer(self) -> None:
        index = self.input.value
        if index is None:
            self.feedback.value = views.sentence("Choose an answer first.", "info")
            return
        answer = self.choice.answers[index]
        word = "Right." if answer.correct else "Not so."
        kind: views.Kind = "good" if answer.correct else "bad"
        self.feedback.value = views.sentence(f"{word} {answer.feedback}", kind)
        if self.first is None:
            self.first = answer.correct
            self._answered()


class Recap(views.Displayed):
    """The chapter's last questions; the ledger line appears when all are answered, or on demand."""

    def __init__(
        self,
        choices: Sequence[Choice],
        ledger: Ledger,
        *,
        key: str,
        progress: Progress | None = None,
    ) -> None:
        self.key, self.ledger = key, ledger
        self._progress = progress or Progress()
        self._recorded = False
        self.items = [
            _Item(number + 1, choice, self._answered) for number, choice in enumerate(choices)
        ]
        self.status = views.html()
        self.ledger_view = views.html()
        self.ledger_button = widgets.Button(
            description="Show the ledger", tooltip="Show the chapter's ledger line"
        )
        self.ledger_button.on_click(lambda button: self.show_ledger())
        heading = views.html('<b role="heading" aria-level="4">Recap</b>')
        self.widget = widgets.VBox(
            [
                heading,
                *(item.widget for item in self.items),
                self.status,
                self.ledger_button,
                self.ledger_view,
            ]
        )

    def answer(self, question: int, answer: int) -> None:
        """Answer a question by numbers from 0, as a click does."""
        self.items[question].input.value = answer
        self.items[question].answer()

    def show_ledger(self) -> None:
        """Show the ledger line."""
        self.ledger_view.value = views.table([self.ledger.words()])

    def _answered(self) -> None:
        left = sum(item.first is None for item in self.items)
        points = sum(item.first is True for item in self.items)
        if left:
            self.status.value = views.sentence(f"{left} to go.")
            return
        if not self._recorded:
            self._recorded = True
            self._progress.record(self.key, "recap", points, len(self.items))
        text = f"{points} of {len(self.items)} right at the first answer."
        self.status.value = views.sentence(text, "info")
        self.show_ledger()

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {text}" for name, text in self.ledger.words().items())
