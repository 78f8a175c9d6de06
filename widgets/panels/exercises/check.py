"""Check: the reader's solution against a chapter's cases, with hints and the worked solution.

The exercise is loaded from `labs/exercises/`; the solution is looked up by name at every press, so
that running the cell that defines it again is enough. Knows nothing about any particular exercise.
"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from widgets.figures.time.answers import answers
from widgets.panels import views
from widgets.panels.base import Panel, Refusal
from widgets.panels.exercises.definition import stale
from widgets.panels.exercises.exercise import Exercise, load_exercise, load_solution
from widgets.panels.exercises.judging import Report, check
from widgets.scoring.progress import Progress
from widgets.workers import Job

_KINDS: dict[str, views.Kind] = {"not attempted": "info", "passed": "good", "failed": "bad"}


class Check(Panel):
    """The panel of an exercise: `Check("45a_policy")`.

    `solution` is the function or class to check; left out, the object that the notebook calls
    `exercise.function`. An untouched stub is "not attempted" and no error; neither is a wrong
    solution.
    """

    def __init__(
        self,
        exercise: str | Exercise,
        solution: Any = None,
        *,
        labs: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.name = exercise if isinstance(exercise, str) else ""
        self.exercise = load_exercise(exercise, labs) if isinstance(exercise, str) else exercise
        super().__init__(f"Exercise: {self.exercise.title}", run_label="Check")
        self._solution, self._labs = solution, labs
        self._progress = progress or Progress()
        self._hints_given = 0
        self.solution_seen = False
        self.hint_button = widgets.Button(
            description="Hint 1 of 3", tooltip="Show the next hint of three"
        )
        self.solution_button = widgets.Button(
            description="Show the solution", tooltip="Show the worked solution; no score after that"
        )
        self.hint_button.on_click(lambda button: self.hint())
        self.solution_button.on_click(lambda button: self.show_solution())
        self.solution_button.disabled = not self.name
        self.hints, self.solution_view, self.report = views.html(), views.html(), views.html()
        name = self.exercise.function
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(self.exercise.task))
        task = views.html(f"<p>{text} (<code>{escape(name)}</code>)</p>")
        self.settings.children = (task,)
        self.picture = views.FigureView()
        self.results.children = (self.report,)
        helps = widgets.HBox([self.hint_button, self.solution_button])
        self.widget.children = (*self.widget.children, helps, self.hints, self.solution_view)

    def check(self) -> None:
        """Raise Refusal where the notebook has no solution, not even a stub, or one that is older
        than what the reader wrote last."""
        try:
            self._found()
        except Refusal:
            # What the last check said is not about what the reader has written now.
            self.report.value = self.status.value = ""
            self.results.children = (self.report,)
            raise

    def work(self, job: Job) -> Report:
        """Run the cases on the solution as it is now."""
        solution = self._found()

        def on_case(done: int, total: int) -> None:
            job.report(done / total, f"Case {done + 1} of {total}.")

        worked = self._worked()
        report = check(
            solution,
            self.exercise,
            worked=None if worked is None else worked[0],
            should_stop=lambda: job.stopping,
            on_case=on_case,
        )
        job.check()
        self._record(report)
        return report

    def show(self, report: Report) -> None:
        """Show what came out."""
        first, *rest = report.sentences()
        if report.status != "not attempted":  # Its first sentence says so itself.
            first = f"{report.status.capitalize()}. {first}"
        lines = [views.sentence(first, _KINDS[report.status])]
        lines += [views.sentence(line) for line in rest]
        if report.status == "passed" and self.solution_seen:
            lines.append(views.sentence("The worked solution was shown: no score.", "info"))
        self.report.value = "".join(lines)
        self._draw(report)

    def _draw(self, report: Report) -> None:
        picture, numbers = self.exercise.picture, report.pictured
        if picture is None or numbers is None:
            self.results.children = (self.report,)
            return
        caption = (
            "What your rule does, beside the worked solution's; counted or modelled, equal on any "
            "machine."
        )
        names = picture.title, picture.x, picture.y
        self.picture.draw(answers(*names, numbers.yours, numbers.worked, picture.at, caption))
        self.results.children = (self.report, self.picture.widget)

    def hint(self) -> None:
        """Give the next hint."""
        hints = self.exercise.hints
        self._hints_given = min(self._hints_given + 1, len(hints))
        given = [f"<li>{escape(hint)}</li>" for hint in hints[: self._hints_given]]
        self.hints.value = f'<ol role="status">{"".join(given)}</ol>'
        self.hint_button.disabled = self._hints_given == len(hints)
        if not self.hint_button.disabled:
            self.hint_button.description = f"Hint {self._hints_given + 1} of {len(hints)}"

    def show_solution(self) -> None:
        """Show the worked solution; from then on nothing is scored."""
        worked = self._worked()
        if worked is None:
            text = "This copy of the lab has no worked solutions: ask your teacher."
            self.solution_view.value = views.sentence(text, "info")
            return
        self.solution_seen = True
        self.solution_view.value = f"<pre>{escape(worked[1])}</pre>"

    def _worked(self) -> tuple[Any, str] | None:
        return load_solution(self.name, self.exercise, self._labs) if self.name else None

    def _found(self) -> Any:
        if self._solution is not None:
            return self._solution
        from IPython import get_ipython

        shell = get_ipython()
        if shell is not None and (problem := stale(self.exercise.function, shell)):
            raise Refusal(problem)
        # Without a shell the chapter runs as a script.
        names = vars(sys.modules["__main__"]) if shell is None else shell.user_ns
        if self.exercise.function not in names:
            raise Refusal(
                f"there is no {self.exercise.function!r} in this notebook yet: run the cell that "
                "defines it"
            )
        return names[self.exercise.function]

    def _record(self, report: Report) -> None:
        if report.status == "not attempted" or self.solution_seen:
            return
        passed = report.status == "passed"
        points, out_of = float(passed), 1.0 + (self.exercise.score is not None)
        if report.score is not None:
            # A score above the worked solution's is shown, and counts as full marks.
            points += min(report.score.share, 1.0)
        self._progress.record(self.exercise.key, "check", points, out_of)
