"""What every panel that runs something is made of: run, stop, progress, errors, hidden results.

A click checks the settings, starts the panel's worker and returns. Results can be hidden until the
reader has committed to a prediction: they are then not in the page at all, and the run itself waits
for the commitment, so that it is seen live. Knows nothing about what a run does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from html import escape
from typing import Any

import ipywidgets as widgets
from IPython.display import display

from minserve.config import ConfigError
from minserve.request import InvalidRequestError
from widgets.notebooks.fallback import bundle
from widgets.panels import views
from widgets.panels.controls import Control
from widgets.theme import headless
from widgets.workers import Job, Worker, describe_error


class Refusal(ValueError):
    """A run that cannot begin as things stand. The message says what to do first."""


class NotYetError(RuntimeError):
    """A result that is still to come: its run goes on, or waits for the reader."""


_patient: ContextVar[bool] = ContextVar("patient", default=True)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Within it, `Panel.result` raises NotYetError for a run under way instead of waiting."""
    token = _patient.set(False)
    try:
        yield
    finally:
        _patient.reset(token)


REFUSALS = (ConfigError, InvalidRequestError, Refusal)
"""Errors whose message is a sentence for the reader."""


class Panel(views.Displayed):
    """A panel with a worker. Subclasses say what to check, what to run, and what to show."""

    def __init__(self, title: str, *, run_label: str = "Run", name: str = "") -> None:
        self.title = title
        self.worker = Worker(name or title, self._heard)
        self._lock = threading.RLock()
        self._result: Any = None
        self._listeners: list[Callable[[Any], None]] = []
        self._unfinished: list[Callable[[], None]] = []
        self._masks: dict[object, str] = {}
        self._holds: dict[object, str] = {}
        self._wanted = False
        self._places: list[tuple[Callable[[Any], views.Shown], widgets.VBox]] = []
        self.run_button = widgets.Button(
            description=run_label, button_style="primary", tooltip=f"{run_label}: {title}"
        )
        self.stop_button = widgets.Button(
            description="Stop", disabled=True, tooltip=f"Stop: {title}"
        )
        self.run_button.on_click(lambda button: self.pressed_run())
        self.stop_button.on_click(lambda button: self.stop())
        self.progress = widgets.FloatProgress(
            min=0.0, max=1.0, description="Progress", layout=widgets.Layout(width="16rem")
        )
        self.progress.layout.visibility = "hidden"
        self.status = views.html()
        self.problem = views.html()
        self.settings = widgets.VBox([])
        """Where a subclass puts its controls."""
        self.controls: dict[str, Control] = {}
        """What the reader may set: a subclass fills it with `add_controls`."""
        self._ran_with: dict[str, Any] = {}
        self.outcome = views.Results()
        self.results = self.outcome.box
        """Where a subclass shows what came out."""
        self._slot = widgets.VBox([self.outcome.widget])
        buttons = widgets.HBox([self.run_button, self.stop_button, self.progress])
        heading = views.html(f'<b role="heading" aria-level="4">{escape(title)}</b>')
        self.widget = widgets.VBox(
            [heading, self.settings, buttons, self.status, self.problem, self._slot]
        )

    # What a subclass brings.

    def check(self) -> None:
        """Raise ConfigError or Refusal, in a sentence, where a run cannot work."""

    def work(self, job: Job) -> Any:
        """The run, in the worker's thread; returns the result."""
        raise NotImplementedError

    def show(self, result: Any) -> None:
        """Fill `results`; in the worker's thread, after the run."""

    # What a chapter calls.

    def run(self) -> None:
        """Start a run, as the button does; headless, it is over when this returns.

        While a question about the results is open, the run waits for the reader's answer; headless
        it does not. Raises ConfigError or Refusal where it cannot begin. What goes wrong later is
        shown in the panel and raised by `result` and by the chapter's last cell.
        """
        self.check()
        with self._lock:
            self._wanted = bool(self._holds) and not headless()
        if self._wanted:
            self.status.value = views.sentence(self._runs_when(), "info")
        else:
            self._start()

    def stop(self) -> None:
        """End the run within a step; nothing is quoted from it."""
        self.worker.stop()

    @property
    def under_way(self) -> bool:
        """True while a run goes on, waits for its turn, or waits for the reader's answer."""
        return self._wanted or self.worker.busy

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the run's end; False when it takes longer."""
        return self.worker.wait(timeout_s)

    @property
    def result(self) -> Any:
        """What the last complete run gave; waits for one under way.

        Raises the run's error, RuntimeError when there has been no complete run, and NotYetError
        when the run waits for the reader.
        """
        if self._wanted and self._result is None:
            raise NotYetError(f"“{self.title}” has no result yet. {self._runs_when()}")
        if not self.worker.own_thread:  # Listeners are called before the run ends.
            if self.worker.busy and not _patient.get():
                raise NotYetError(f"“{self.title}” is still running")
            self.wait()
        if self.worker.error is not None:
            raise self.worker.error
        if self._result is None:
            raise RuntimeError(f"“{self.title}” has no result yet: press {self._run_name()} first")
        return self._result

    @property
    def last(self) -> Any:
        """The last complete result, without waiting; None before the first."""
        return self._result

    def on_result(self, heard: Callable[[Any], None]) -> None:
        """Call `heard(result)` after every complete run, and now if there was one."""
        with self._lock:
            self._listeners.append(heard)
            result = self._result
        if result is not None:
            heard(result)

    def on_unfinished(self, heard: Callable[[], None]) -> None:
        """Call `heard()` after every run that gave no result: it was stopped, or it failed."""
        with self._lock:
            self._unfinished.append(heard)

    def also(self, render: Callable[[Any], views.Shown]) -> None:
        """Show `render(result)` here too, after every run, hidden wherever the results are.

        `render` returns a figure, a widget, a dict of facts, or text. Headless, it waits for the
        result and shows it at once.
        """
        if headless():
            views.print_plain(render(self.result))
            return
        place = widgets.VBox([])
        with self._lock:
            self._places.append((render, place))
        self._fill_places()
        display(bundle(place, f"{self.title}: shown after a run"), raw=True)

    def show_facts(self) -> None:
        """Show what is the same on every machine: for cells whose output is compared."""
        self.also(lambda result: result.facts())

    # Hiding.

    @property
    def masked(self) -> bool:
        """True while results are hidden."""
        return bool(self._masks)

    def mask(self, owner: object, why: str, until: str = "") -> None:
        """Hide results until `owner` unmasks them; `why` says what the reader can do.

        With `until` ("you commit to a prediction above"), a run waits for that too.
        """
        with self._lock:
            self._masks[owner] = why
            if until:
                self._holds[owner] = until
        self._uncover()

    def unmask(self, owner: object) -> None:
        """Take back `owner`'s mask, and start a run that waited for it alone."""
        with self._lock:
            self._masks.pop(owner, None)
            self._holds.pop(owner, None)
            begin = self._wanted and not self._holds
        self._uncover()
        if begin:
            self.pressed_run()

    def _runs_when(self) -> str:
        until = next(iter(self._holds.values()), "it is asked to")
        return f"Runs when {until}, or press “Show me”."

    def _uncover(self) -> None:
        if self._masks:
            self._slot.children = (views.html(views.sentence(self._why(), "info")),)
        else:
            self._slot.children = (self.outcome.widget,)
        self._fill_places()

    def _why(self) -> str:
        return next(iter(self._masks.values()), "")

    def _fill_places(self) -> None:
        for render, place in list(self._places):
            if self._masks:
                text = self._why()
            elif self._result is None and self.under_way:
                text = f"Shown here when the run of “{self.title}” has ended."
            elif self._result is None:
                text = f"Shown here after {self._run_name()} in “{self.title}”."
            else:
                try:
                    place.children = (views.as_widget(render(self._result)),)
                except Exception as error:
                    # A click's traceback goes nowhere: keep it where the last cell finds it.
                    self.worker.error = error
                    self.problem.value = _error_html(error)
                continue
            place.children = (views.html(views.sentence(text, "info")),)

    # The worker's side.

    def pressed_run(self) -> None:
        """What the button does: `run`, with a refusal shown instead of raised."""
        self.say_problem("")
        try:
            self.run()
        except REFUSALS as error:
            # "Done." is of the run before.
            self.status.value = ""
            self.say_problem(str(error))

    def say_problem(self, text: str) -> None:
        """Show a sentence about settings that cannot work; "" takes it away."""
        self.problem.value = views.sentence(text, "problem")

    def _start(self) -> None:
        self.say_problem("")
        self.worker.start(self._work)
        if self._result is None:
            self._fill_places()

    def add_controls(self, controls: Iterable[Control]) -> None:
        """Take controls in: where one is moved off what the last run had, its results grey out."""
        for control in controls:
            self.controls[control.name] = control
            control.observe(self._compare_settings)

    def _values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def _compare_settings(self) -> None:
        if self._result is None or self._ran_with == self._values():
            self.outcome.restore()
        elif not self.worker.busy or self.worker.own_thread:
            self.outcome.grey_out()

    def _work(self, job: Job) -> Any:
        self._ran_with = self._values()
        result = self.work(job)
        with self._lock:
            self._result = result
        self._compare_settings()
        self.show(result)
        self._fill_places()
        for heard in list(self._listeners):
            heard(result)
        return result

    def _heard(self, worker: Worker) -> None:
        state = worker.state
        busy = state in ("waiting", "running")
        self.run_button.disabled = busy
        self.stop_button.disabled = not busy or worker.stopping
        self.progress.layout.visibility = "visible" if busy else "hidden"
        self.progress.value = worker.share
        if state == "failed" and worker.error is not None:
            self.status.value = ""
            self.problem.value = _error_html(worker.error)
        else:
            texts = {"done": "Done.", "stopped": "Stopped. Nothing is quoted from this run."}
            text = "Stopping after the step under way." if worker.stopping else worker.text
            self.status.value = views.sentence(texts.get(state, text))
        if state in ("stopped", "failed"):
            for heard in list(self._unfinished):
                heard()

    def _run_name(self) -> str:
        return f"“{self.run_button.description}”"

    # Display.

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.title}"


def _error_html(error: BaseException) -> str:
    if isinstance(error, REFUSALS):
        return views.sentence(str(error), "problem")
    text = f"The run failed. {type(error).__name__}: {error}"
    return (
        views.sentence(text, "problem")
        + "<details><summary>Details for a bug report</summary>"
        + f"<pre>{escape(describe_error(error))}</pre></details>"
    )
