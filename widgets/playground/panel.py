"""The playground: one base configuration against up to three variants, on any workload.

Puts the forms, the editor and the view together. A press of the button runs all sides in turn, on
this machine's clock or on a virtual one. Knows nothing about how a side is run or shown.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from minserve.bench.compare.code import decode, encode
from minserve.bench.compare.errors import SetupError
from minserve.bench.compare.setup import Setup, Variant
from minserve.bench.compare.words import command_line
from minserve.bench.compare.workload import Workload
from widgets.panels import views
from widgets.panels.base import REFUSALS, Panel, Refusal
from widgets.panels.comparison.sides import virtual_by_default
from widgets.playground import export
from widgets.playground.editor import ConfigEditor
from widgets.playground.forms import PROMPTS, MachineForm, WorkloadForm
from widgets.playground.result import LIMIT_S, PlayResult
from widgets.playground.running import Runs, requests_of
from widgets.playground.state import State
from widgets.playground.view import PlayView
from widgets.theme import headless
from widgets.workers import Job, Stopped

_CODE = "code"
"""The place of what is done with the box of the code."""
_WIDE = widgets.Layout(width="min(60rem, 98%)")


def first_setup() -> Setup:
    """What a new playground holds: headless, and where the machine is said to be busy, on the
    virtual clock."""
    variants = (Variant("radix", {"memory.prefix_cache": "radix"}),)
    if headless() or virtual_by_default():
        return Setup(
            model="llama-3.1-8b",
            base={"memory.kv_bytes": 4 << 30},
            variants=variants,
            workload=Workload("shared-prefix", {"prefix": 1500, "rate": 8.0}),
            clock="virtual",
        )
    return Setup(
        base={"memory.kv_bytes": 64 << 20},
        variants=variants,
        workload=Workload("shared-prefix", {"rate": 32.0}),
    )


class Playground(Panel):
    """One base against up to three variants. `code` restores an earlier comparison."""

    def __init__(
        self, code: str = "", *, title: str = "The playground", limit_s: float = LIMIT_S
    ) -> None:
        super().__init__(title, run_label="Run all sides", name=title)
        self.limit_s = limit_s
        self.state = State(decode(code) if code else first_setup())
        self.code_box = widgets.Textarea(description="Code", rows=3, layout=_WIDE)
        self.restore_button = widgets.Button(
            description="Restore", tooltip="Put the comparison of this code in place of this one"
        )
        self.restore_button.on_click(lambda button: self.state.restore(self.code_box.value, _CODE))
        self.code_refused = views.html()
        self.command = views.html()
        self.machine = MachineForm(self.state)
        self.workload = WorkloadForm(self.state)
        self.editor = ConfigEditor(self.state)
        shared = views.Accordion(
            (
                widgets.VBox([self.code_box, self.restore_button, self.code_refused]),
                self.command,
            ),
            ("Code: keep, share or restore this comparison", "The same on the command line"),
        )
        self.shared = shared
        self.task = widgets.VBox([])
        """What the reader is asked to do with the sides, where something is."""
        self.judgement = views.html()
        """Whether a run did it: first among the results, and gone as soon as another begins."""
        self.settings.children = (
            shared,
            views.html("<b>Model and clock</b>"),
            self.machine.widget,
            views.html("<b>Workload</b>"),
            self.workload.widget,
            self.task,
            self.editor.widget,
        )
        self.view = PlayView()
        self.results.children = (self.judgement, self.view.widget)
        self.state.listen(self._changed)
        self.state.tell()

    # What a notebook calls.

    @property
    def setup(self) -> Setup:
        """The comparison as it stands."""
        return self.state.setup

    @property
    def code(self) -> str:
        """The comparison as a text that restores it."""
        return encode(self.state.setup)

    @property
    def command_line(self) -> str:
        """The command that runs it."""
        return command_line(self.state.setup)

    def restore(self, code: str) -> bool:
        """Put the comparison of a code in place of this one; False where it is refused, with the
        sentence shown. Nothing runs."""
        return self.state.restore(code)

    def save(self, path: str | Path) -> Path:
        """Write the last result as .json, .csv or .png. Raises ValueError and RuntimeError."""
        result: PlayResult = self.result
        return export.save(result, path)

    def facts(self) -> dict[str, Any]:
        """What is the same on every machine."""
        result: PlayResult = self.result
        return result.facts()

    # What the panel does.

    def check(self) -> None:
        """Raise Refusal or ConfigError where a side cannot run, or there is no request."""
        for side, said in self.state.refusals().items():
            raise Refusal(f"“{side}” cannot run: {said}")
        if refused := self.state.refused_at(PROMPTS):
            # They stand in their box, and the setup holds others, or none.
            raise Refusal(refused)
        self.state.forget()
        requests_of(self.setup)

    def work(self, job: Job) -> PlayResult:
        """All sides in turn."""
        setup = self.setup
        self._ran_with = {"setup": setup}
        self.judgement.value = ""
        runs = Runs(setup, job, lambda traces: self._draw(setup, traces), self.limit_s)
        try:
            return runs.all()
        except (Stopped, *REFUSALS):
            self.view.stopped()
            raise

    def _draw(self, setup: Setup, traces: Any) -> None:
        if not self.masked:
            self.view.draw_live(setup, traces)
            # What is drawn now is of these settings, unless they were changed since.
            self._compare_settings()

    def show(self, result: PlayResult) -> None:
        """Draw the final figures and numbers."""
        self.view.draw(result)

    def _values(self) -> dict[str, Any]:
        return {"setup": self.state.setup}

    def _changed(self) -> None:
        refused = self.state.refused_at(_CODE)
        self.code_refused.value = views.sentence(refused, "problem")
        try:
            # A code that is refused stays to be mended.
            if not refused:
                self.code_box.value = self.code
            words = command_line(self.setup)
            text = (
                "It runs the same sides over the same requests. On the virtual clock its numbers "
                "are the same; on this machine it measures rounds of its own, and cuts none."
            )
            shown = f"<pre style='white-space:pre-wrap'>{escape(words)}</pre>"
            self.command.value = views.sentence(text, "info") + shown
        except SetupError as error:
            self.code_box.value, self.command.value = "", views.sentence(str(error), "problem")
        self.say_problem(self.state.refused_at(""))
        self._compare_settings()
