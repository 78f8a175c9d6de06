"""Recap: a handful of choices with feedback for every answer, and the chapter's ledger line.

The first answer to each question counts, also after a restart; further ones may be tried for their
feedback. Knows nothing about the chapter it closes.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import ipywidgets as widgets

from widgets import theme
from widgets.panels import views
from widgets.scoring.progress import Progress
from widgets.scoring.questions import Choice, Closing, fingerprint, load
from widgets.scoring.scores import Chosen, Commit


class _Item:
    def __init__(self, number: int, choice: Choice, answered: Callable[[], None]) -> None:
        self.choice = choice
        self.first: int | None = None
        """The answer that counts."""
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

    @property
    def right(self) -> bool | None:
        """Whether the first answer was right; None before it."""
        return None if self.first is None else self.choice.answers[self.first].correct

    def answer(self) -> None:
        """Say what is to be said about the answer chosen; the first one counts."""
        index = self.input.value
        if index is None:
            self.feedback.value = views.sentence("Choose an answer first.", "info")
            return
        answer = self.choice.answers[index]
        word = "Right." if answer.correct else "Not so."
        kind: views.Kind = "good" if answer.correct else "bad"
        self.feedback.value = views.sentence(f"{word} {answer.feedback}", kind)
        if self.first is None:
            self.first = index
            self._answered()


class Recap(views.Displayed):
    """The chapter's last questions; the ledger line appears when all are answered, or on demand.

    `asked` is the chapter ("45b"), whose questions are in `labs/questions/`.
    """

    def __init__(self, asked: str | Closing, *, progress: Progress | None = None) -> None:
        self.asked = load(asked).recap if isinstance(asked, str) else asked
        self.key, self.ledger = self.asked.key, self.asked.ledger
        self._progress = progress or Progress()
        self._recorded = False
        self.items = [
            _Item(number, choice, self._answered)
            for number, choice in enumerate(self.asked.questions, start=1)
        ]
        self.status = views.html()
        self.ledger_view = views.html()
        self.ledger_button = widgets.Button(
            description="Show the ledger", tooltip="Show the chapter's ledger line"
        )
        self.ledger_button.on_click(lambda button: self.show_ledger())
        heading = views.html('<b role="heading" aria-level="4">Recap</b>')
        items = [item.widget for item in self.items]
        self.widget = widgets.VBox(
            [heading, *items, self.status, self.ledger_button, self.ledger_view]
        )
        self._restore()

    def answer(self, question: int, answer: int) -> None:
        """Answer a question by numbers from 0, as a click does."""
        self.items[question].input.value = answer
        self.items[question].answer()

    def show_ledger(self) -> None:
        """Show the ledger line."""
        self.ledger_view.value = views.table([self.ledger.words()])

    def _answered(self) -> None:
        self._count()
        self._keep()

    def _count(self) -> None:
        left = sum(item.first is None for item in self.items)
        points = sum(item.right is True for item in self.items)
        if left:
            self.status.value = views.sentence(f"{left} to go.")
            return
        if not self._recorded:
            self._recorded = True
            self._progress.record(self.key, "recap", points, len(self.items))
        text = f"{points} of {len(self.items)} right at the first answer."
        self.status.value = views.sentence(text, "info")
        self.show_ledger()

    def _keep(self) -> None:
        chosen = tuple(Chosen(option=item.first) for item in self.items)
        self._progress.keep(
            Commit(self.key, fingerprint(self.asked), chosen, scored=self._recorded)
        )

    def _restore(self) -> None:
        """Take up the answers given before a restart."""
        if theme.headless():
            return
        found = self._progress.commit_of(self.key, fingerprint(self.asked))
        if found is None or len(found.chosen) != len(self.items):
            return
        self._recorded = found.scored
        for item, chosen in zip(self.items, found.chosen, strict=True):
            if chosen.option is not None and chosen.option < len(item.choice.answers):
                item.first = item.input.value = chosen.option
                item.answer()
        self._count()

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {text}" for name, text in self.ledger.words().items())
