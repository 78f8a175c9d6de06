"""The challenges of a playground: take one, change the variant, run, and see the points.

The task stands in the playground itself, over the sides, and the verdict over the results. Judges
every run of the challenge taken, and keeps the points with the reader's other scores.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from widgets.panels import views
from widgets.playground.challenges import (
    CHALLENGES,
    LOCKED,
    OUT_OF,
    Challenge,
    Judgement,
    judged,
)
from widgets.playground.panel import Playground
from widgets.playground.result import PlayResult
from widgets.scoring.progress import Progress
from widgets.theme import headless

CHAPTER = "02"
_HOW = (
    "Choose a challenge and press “Take it”: the playground then holds its requests, its memory "
    "and its GPU, and a variant called “mine”. The page goes there. Change fields of the sections "
    "“memory” and “scheduling”, and run. The clock is virtual, so your score is the same on any "
    "machine."
)


class Here(anywidget.AnyWidget):
    """A place that the page goes to when it is first shown. A new one each time: a page that was
    busy when a widget was made may hear of no change to it."""

    _esm = Path(__file__).with_name("bring.js")
    fresh = traitlets.Bool(True).tag(sync=True)


class Challenges(views.Displayed):
    """Six tasks for the playground `play`."""

    def __init__(self, play: Playground, progress: Progress | None = None) -> None:
        self.play, self.progress = play, progress or Progress()
        self.taken: Challenge | None = None
        self.choice = widgets.Dropdown(
            options=[(each.title, key) for key, each in CHALLENGES.items()],
            description="Challenge",
        )
        self.take_button = widgets.Button(description="Take it", button_style="primary")
        self.text = views.html()
        self.task = views.html()
        """The challenge taken, as it stands in the playground."""
        self.leave_button = widgets.Button(
            description="Leave the challenge", icon="times",
            tooltip="Keep this comparison, and judge its runs no more",
        )  # fmt: skip
        self.verdict = play.judgement
        self.table = views.html()
        self.choice.observe(lambda change: self._describe(), "value")
        self.take_button.on_click(lambda button: self.take(self.choice.value))
        self.leave_button.on_click(lambda button: self.leave())
        self.widget = widgets.VBox(
            [
                views.html('<b role="heading" aria-level="4">Challenges</b>'),
                views.html(views.sentence(_HOW)),
                widgets.HBox([self.choice, self.take_button]),
                self.text,
                self.table,
            ]
        )
        play.on_result(self._judge)
        self._describe()
        self._show_scores()

    def take(self, key: str) -> None:
        """Put a challenge into the playground."""
        challenge = CHALLENGES[key]
        if self.choice.value != key:
            self.choice.value = key
        if self.play.state.change(lambda setup: challenge.start):
            self.taken = challenge
            self.verdict.value = ""
            self.task.value = (
                f"<b>Challenge: {escape(challenge.title)}</b>"
                + _described(challenge)
                + views.sentence("Change “mine” below, and press “Run all sides”.")
            )
            self.play.editor.side.value = "mine"
            here = () if headless() else (Here(),)
            self.play.task.children = (*here, self.task, self.leave_button)

    def leave(self) -> None:
        """Judge no more runs; the comparison stays."""
        self.taken = None
        self.verdict.value = ""
        self.play.task.children = ()

    def _describe(self) -> None:
        self.text.value = _described(CHALLENGES[self.choice.value])

    def _judge(self, result: PlayResult) -> None:
        challenge = self.taken
        if challenge is None or self.task not in self.play.task.children:
            return  # The cell was run again: the challenge in the playground is its new panel's.
        found = judged(challenge, result)
        counted = {name: each for name, each in found.items() if each.counts}
        if counted:
            best = max(each.points for each in counted.values())
            self.progress.record(f"{CHAPTER}.{challenge.key}", "check", best, OUT_OF)
        # Another comparison altogether is no matter of one side.
        alike = len({each.sentence for each in found.values()}) == 1 < len(found)
        said = [*found.items()][:1] if alike else [*found.items()]
        self.verdict.value = "".join(
            views.sentence(
                f"{challenge.title}{'' if alike else f', “{name}”'}. {each.sentence}", _kind(each)
            )
            for name, each in said
        ) or views.sentence("Nothing was changed yet: change a field of “mine”.", "info")
        self._show_scores()

    def _show_scores(self) -> None:
        entries = self.progress.entries()
        rows: list[dict[str, Any]] = []
        for key, challenge in CHALLENGES.items():
            entry = entries.get(f"{CHAPTER}.{key}")
            points = f"{entry.best:g} of {entry.out_of:g}" if entry else "not tried"
            rows.append({"challenge": challenge.title, "your best": points})
        self.table.value = views.table(rows)

    def __repr__(self) -> str:
        return f"Challenges: {', '.join(each.title for each in CHALLENGES.values())}"


def _described(challenge: Challenge) -> str:
    """The task, its limits, and what is fixed."""
    limits = "; ".join(f"{goal.label} at most {goal.show(goal.limit)} ({goal.how})"
                       for goal in challenge.goals)  # fmt: skip
    par = challenge.goals[0].show(challenge.par)
    fixed = ", ".join((*LOCKED, *challenge.locked))
    return (
        views.sentence(challenge.text)
        + views.sentence(f"Limits: {limits}. All {OUT_OF:g} points from {par} down.", "info")
        + views.sentence(f"Not to be changed: {fixed}.")
    )


def _kind(judgement: Judgement) -> views.Kind:
    if not judgement.counts:
        return "info"
    return "good" if judgement.passed else "bad"
