"""Inside a chapter's kernel: everything that is displayed also leaves what the book needs of it.

`install()` is run before the chapter's first cell, headless. A figure leaves its plot, a replay its
frames, a panel its verdict, a question its key, and at the end its answer. Knows nothing about
pages; `record` keeps what is left here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from IPython.display import display

from book import motion
from widgets import theme
from widgets.figures.lab_figure import LabFigure
from widgets.figures.render import words_html
from widgets.panels import views
from widgets.panels.comparison.compare import Compare
from widgets.panels.exercises.check import Check
from widgets.panels.questions.estimate import Estimate
from widgets.panels.questions.predict import Predict
from widgets.panels.questions.recap import Recap
from widgets.panels.splits import Splits
from widgets.panels.stepper import Stepper
from widgets.panels.sweeps.sweep import Sweep
from widgets.replays.frames import frame_times, frames_of
from widgets.replays.moments import speed_words
from widgets.replays.replay import Replay
from widgets.scoring.progress import Dashboard
from widgets.tokenview import TokenView

MIME = "application/vnd.minserve.book+json"
"""One piece of a page; `kind` says which."""
MAX_FRAMES = 60
Piece = dict[str, Any]


def figure(lab: LabFigure, moving: motion.Motion | None = None) -> Piece:
    """A figure with its words, and with frames where it can be revealed along a time or a step."""
    plot = lab.figure.to_plotly_json()
    return {
        "kind": "figure",
        "alt": lab.alt,
        "words": words_html(lab.takeaway, lab.caption, lab.alt, lab.table),
        "plot": _json({"data": plot["data"], "layout": plot["layout"]}),
        "motion": _json(moving or motion.reveal(lab.figure)),
    }


def replay(shown: Replay) -> list[Piece]:
    """A replay's views, each with the frames that `widgets.replays.frames` makes of it."""
    times = frame_times(shown.moments, MAX_FRAMES)
    moments = [shown.moments.at(at) for at in times]
    pace_ms = 1e3 * shown.moments.last_s / shown.speed / max(1, len(times) - 1)
    words = f"{shown.title}, played at {speed_words(shown.speed)}."
    caption = shown.text.partition("steps. ")[2]
    pieces = []
    for view in shown.views:
        drawn, frames = frames_of(view, moments, times)
        changes = [{} if n and frame == frames[n - 1] else frame for n, frame in enumerate(frames)]
        moving = motion.Motion([theme.format_seconds(at) for at in times], changes, pace_ms)
        lab = LabFigure(drawn, caption, words, f"Replay: {view.title}.")
        pieces.append(figure(lab, moving))
    return pieces


def stepper(shown: Stepper) -> Piece:
    """All states of a figure."""
    states = [shown.state(place) for place in range(shown.count)]
    labels = [f"{shown.what} {place + 1} of {shown.count}" for place in range(shown.count)]
    moving = motion.states(labels, [state.figure for state in states])
    return figure(states[-1], moving)


def panel(shown: Any) -> list[Piece]:
    """What a panel found: its sentences and its figure."""
    if isinstance(shown, Compare):
        told, lab = [shown.view.headline, shown.view.agreement], shown.view.strips.shown
    elif isinstance(shown, Splits):
        told, lab = [shown.words], shown.view.shown
    elif isinstance(shown, Sweep):
        told, lab = [], shown.view.shown
    else:
        return [{"kind": "lab only", "text": repr(shown)}]
    html = "".join(each.value for each in told)
    moving = None
    if isinstance(shown, Sweep) and shown.last is not None and lab is not None:
        moving = motion.along_points(lab.figure, shown.last.label)
    drawn = [figure(lab, moving)] if lab is not None else []
    return [{"kind": "panel", "title": shown.title, "html": html}, *drawn]


_asked: list[Predict | Estimate] = []


def question(shown: Any) -> Piece:
    """A question's key; what the run answers to it is known at the end (`answers`)."""
    if isinstance(shown, Predict | Estimate):
        _asked.append(shown)
    kind = {Predict: "predict", Estimate: "estimate"}.get(type(shown), "recap")
    return {"kind": kind, "key": shown.key}


def answers() -> dict[str, dict[str, str]]:
    """Key -> what this run says: a prediction's verdicts by metric, an estimate's value."""
    found: dict[str, dict[str, str]] = {}
    for each in _asked:
        if isinstance(each, Predict):
            metrics = each.compare.result.metrics
            names = [form.question.metric for form in each.forms]
            found[each.key] = {name: metrics[name].sentence() for name in names}
        else:
            # The words that the panel itself would say, which it keeps to itself.
            value = each._value()
            said = "" if value is None else each._show(value)
            found[each.key] = {"text": each._text, "value": said}
    return found


def exercise(shown: Check) -> Piece:
    """What is to be written, and what helps. The solution is read when the book is built."""
    asked = shown.exercise
    return {
        "kind": "exercise", "name": shown.name, "title": asked.title, "task": asked.task,
        "function": asked.function, "hints": list(asked.hints),
    }  # fmt: skip


def _json(value: Any) -> Any:
    """As JSON has it, which knows neither NaN nor infinity; numbers to six digits, to be small."""
    if isinstance(value, motion.Motion):
        value = vars(value)
    if hasattr(value, "to_plotly_json"):
        value = value.to_plotly_json()
    if isinstance(value, Mapping):
        return {str(name): _json(each) for name, each in value.items() if each is not None}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def leave(*pieces: Piece) -> None:
    """Display pieces, for `record` to find in the notebook's outputs."""
    for piece in pieces:
        display({MIME: json.loads(json.dumps(piece)), "text/plain": piece["kind"]}, raw=True)


def _displayed(shown: Any) -> list[Piece]:
    if isinstance(shown, Stepper):
        return [stepper(shown)]
    if isinstance(shown, Predict | Estimate | Recap):
        return [question(shown)]
    if isinstance(shown, Check):
        return [exercise(shown)]
    return panel(shown)


def finish(figures: Mapping[str, LabFigure], states: Mapping[str, Sequence[Any]]) -> None:
    """After the last cell: leave the answers, and the chapter's signature figures by name;
    `states` is (label, figure) each."""
    leave({"kind": "answers", "found": answers()})
    for name, lab in figures.items():
        moving = None
        if name in states:
            labels, labs = zip(*states[name], strict=True)
            moving = motion.states(labels, [each.figure for each in labs])
        leave(figure(lab, moving) | {"name": name})


def install() -> None:
    """Let everything that is displayed from now on leave its piece."""
    hooks: dict[type, Callable[[Any], list[Piece]]] = {
        LabFigure: lambda lab: [figure(lab)],
        Replay: replay,
        TokenView: lambda view: [{"kind": "html", "html": view.html()}],
        views.Displayed: _displayed,
        Dashboard: panel,
    }
    for kind, pieces in hooks.items():

        def display_it(self: Any, pieces: Callable[[Any], list[Piece]] = pieces) -> None:
            leave(*pieces(self))

        kind._ipython_display_ = display_it  # type: ignore[attr-defined]
