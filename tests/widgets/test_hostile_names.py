"""Names, texts and errors from outside are shown letter by letter: none becomes markup.

Every figure, panel and replay is drawn with names that would run a script in a page that believed
them, and every string of what a browser gets is looked at.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ipywidgets
import pytest

from minserve.bench.counts.launches import step_launches
from minserve.bench.workloads.shapes import SHAPES
from minserve.hardware import DEVICES
from minserve.trace import RunTrace
from tests.widgets.figures import runs
from tests.widgets.figures.test_radix_tree import grown
from tests.widgets.panels.tiny_runs import STATIC, tiny
from widgets import figures, theme, workers
from widgets.figures.lab_figure import LabFigure
from widgets.figures.memory.idle_sessions import idle_sessions
from widgets.figures.memory.radix_tree import RadixTree, radix_tree
from widgets.figures.work.launches import launch_bars
from widgets.figures.work.online_softmax import OnlineSoftmax
from widgets.panels import Compare, Estimate, Predict, Recap, Sweep, views
from widgets.panels.base import _error_html
from widgets.panels.stepper import Stepper
from widgets.replays.frames import replay_html
from widgets.replays.replay import Replay
from widgets.scoring.progress import Dashboard, Progress
from widgets.scoring.questions import (
    Answer,
    Choice,
    Closing,
    Ledger,
    Prediction,
    Quantity,
    Question,
    Reason,
)
from widgets.tokenview import TokenKind, TokenMark, TokenView, token_view

EVIL = "<img src=x onerror=alert(1)>&lt;%{x}</extra><b>\"'"


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))
    yield
    workers._live.clear()


def hostile(trace: RunTrace) -> RunTrace:
    """The same run with evil names wherever a run has names."""
    data = json.loads(trace.to_json())
    text = json.dumps(data | {"header": data["header"] | {
        "model": EVIL, "device": EVIL, "date": EVIL, "notes": [EVIL], "versions": {EVIL: EVIL},
    }})  # fmt: skip
    for number in range(8):
        text = text.replace(f'"request-{number}"', json.dumps(f"{number}{EVIL}"))
    return RunTrace.from_json(text)


class Texts:
    """A tokenizer whose every token is evil."""

    def detokenizer(self, skip_special_tokens: bool = True) -> Any:
        return self

    def push(self, token_ids: Any) -> str:
        return EVIL * len(token_ids)

    def finish(self) -> str:
        return ""


@pytest.fixture(scope="module")
def pair() -> dict[str, RunTrace]:
    made = {}
    for name, trace in (("off", runs.without_cache()), ("on", runs.with_cache())):
        made[f"{name} {EVIL}"] = hostile(trace)
    return made


@pytest.fixture(scope="module")
def single() -> RunTrace:
    return hostile(runs.preempting_run())


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from strings(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from strings(each)


def check_plot(figure: Any) -> int:
    """Nothing in a plotly figure is taken as markup; how many evil strings it shows."""
    plain = json.loads(figure.to_json())
    plain.get("layout", {}).pop("template", None)
    shown = 0
    for text in strings(plain):
        assert "<img" not in text and "%{x}</extra>" not in text, text
        shown += "&lt;img" in text
    return shown


def check_html(text: str) -> None:
    assert "<img" not in text, text
    # The quotes of an attribute cannot be left.
    for attribute in re.findall(r'(?:title|aria-label)="([^"]*)"', text):
        assert "<" not in attribute


def check_figure(figure: LabFigure) -> int:
    check_html(figure.words_html())
    check_html(figure.html(include_plotlyjs=False))
    return check_plot(figure.figure)


def check_widget(widget: Any) -> int:
    """A widget and all below it; how many values were looked at."""
    seen = 0
    if isinstance(widget, (ipywidgets.HTML, ipywidgets.HTMLMath)):
        check_html(widget.value)
        seen += 1
    if isinstance(widget, ipywidgets.Output):
        for output in widget.outputs:
            data = output.get("data", {})
            check_html(data.get("text/html", ""))
    for name in ("_figure_widget", "_data"):
        if getattr(widget, name, None) and hasattr(widget, "to_json"):
            check_plot(widget)
            seen += 1
            break
    if getattr(widget, "description_allow_html", False):
        check_html(widget.description)
    for child in getattr(widget, "children", ()):
        seen += check_widget(child)
    return seen


OF_RUNS: dict[str, Callable[..., Any]] = {
    name: getattr(figures, name)
    for name in figures.__all__
    if inspect.isfunction(getattr(figures, name))
    and next(iter(inspect.signature(getattr(figures, name)).parameters)) in ("runs", "run")
}
NO_FIGURES = {"idle_sessions", "typed", "page_map", "roofline_points", "stage_seconds"}


def test_the_list_of_figures_is_complete() -> None:
    assert len(OF_RUNS) >= 12


@pytest.mark.parametrize("name", sorted(OF_RUNS.keys() - NO_FIGURES))
def test_figures_of_two_runs(name: str, pair: dict[str, RunTrace]) -> None:
    assert check_figure(OF_RUNS[name](pair)) or name == "page_map"


@pytest.mark.parametrize("name", sorted(OF_RUNS.keys() - NO_FIGURES | {"page_map"}))
def test_figures_of_one_run(name: str, single: RunTrace) -> None:
    check_figure(getattr(figures, name)(single))


def test_figures_of_requests_show_their_names(single: RunTrace) -> None:
    for draw in (figures.timeline, figures.slots, figures.page_map, figures.parking_lot):
        assert check_figure(draw(single)), draw
    assert check_figure(figures.step_rows(single, step=2))


def test_figures_of_other_things(pair: dict[str, RunTrace]) -> None:
    deliveries = figures.typewriters(pair)
    assert check_figure(deliveries)
    assert check_figure(idle_sessions({EVIL: ["host", "gone"]}, caption=EVIL))
    ways = {EVIL: step_launches(SHAPES["llama-3.1-8b"].spec(), "torch", [1], [64], "bfloat16")}
    assert check_figure(launch_bars(ways, caption=EVIL))
    point = figures.RooflinePoint(EVIL, 10, 10, 1.0, "measured", "A", 10.0)
    assert check_figure(
        figures.roofline_chart([point], {EVIL: DEVICES["H100 SXM"]}, title=EVIL, caption=EVIL)
    )
    keys = OnlineSoftmax([1.0, 2.0], [[1.0], [2.0]], 1, texts=[EVIL, EVIL])
    assert check_figure(keys.figure(0))


def test_the_prefix_tree_shows_prompts(pair: dict[str, RunTrace]) -> None:
    growth, prompts = grown()
    tree = RadixTree(growth, Texts(), prompts)
    assert check_figure(tree.figure())
    assert check_figure(radix_tree(growth, Texts(), prompts, 1)) >= 0


def test_every_title_is_text(single: RunTrace) -> None:
    shown = theme.layout(EVIL)["title"]["text"]  # type: ignore[index]
    assert "<img" not in shown
    assert theme.plot_text("a & b") == "a &amp; b"


def test_replays_show_names_and_texts(single: RunTrace, pair: dict[str, RunTrace]) -> None:
    names = ("timeline", "pages", "tokens")
    for replay in (
        Replay(single, names, request=f"0{EVIL}", tokenizer=Texts(), title=EVIL),
        Replay(pair, ("typewriters", "timeline"), tokenizer=Texts(), title=EVIL),
    ):
        box = replay.controls.box
        for _ in range(3):
            replay.step(1)
            replay.flush()
            assert check_widget(box) >= 3
        check_html(replay.controls.label.value)
        for bundle in (replay._repr_html_(),) if hasattr(replay, "_repr_html_") else ():
            check_html(bundle)
        replay.close()
    for view in names:
        made = replay_html(single, view, request=f"0{EVIL}", tokenizer=Texts())
        check_html(made)
    check_html(replay_html(pair, "typewriters", tokenizer=Texts()))


def test_token_views_show_texts(single: RunTrace) -> None:
    view = token_view(single, Texts(), request=f"0{EVIL}", title=EVIL)
    check_html(view.html())
    own = TokenView(
        [TokenMark(EVIL, EVIL, 0, 1, 0.5)], EVIL, EVIL, {EVIL: TokenKind(EVIL, EVIL, "#888888")}
    )
    check_html(own.html())


def test_sentences_tables_and_errors_are_text() -> None:
    shown = [
        views.sentence(EVIL), views.headline(EVIL, EVIL), views.table([{EVIL: EVIL}], EVIL),
        _error_html(ValueError(EVIL)), _error_html(KeyError(EVIL)),
        _error_html(RuntimeError(EVIL)),
    ]  # fmt: skip
    for text in shown:
        check_html(text)
        assert "&lt;img" in text


def test_panels_show_what_they_are_given() -> None:
    switch = {"scheduling.policy": "continuous"}
    compare = Compare(STATIC, switch, tiny(3), rounds=3, headline="steps", clock="virtual")
    reasons = (Reason(EVIL, EVIL, correct=True), Reason("no", EVIL), Reason(EVIL * 2, EVIL))
    asked = Prediction((Question("steps", EVIL, reasons),), key="45a.flip")
    predict = Predict(compare, asked)
    compare.run()
    assert compare.wait(30)
    assert check_widget(compare.widget) and check_widget(predict.widget)
    estimate = Estimate(Quantity(EVIL, explain=EVIL, key="00.guess"), 3.0)
    estimate.guess(2.0)
    assert check_widget(estimate.widget)
    stepper = Stepper(1, lambda index: figures.latency(runs.with_cache()), title=EVIL, what=EVIL)
    assert check_widget(stepper.widget)

    answers = (Answer(EVIL, EVIL, correct=True), Answer("no", EVIL))
    ledger = Ledger(EVIL, EVIL, EVIL, EVIL)
    recap = Recap(Closing((Choice(EVIL, answers),), ledger, key="00.recap"))
    recap.answer(0, 0)
    assert check_widget(recap.widget)


def test_a_sweep_over_names_shows_them() -> None:
    folders = [f"/tmp/{EVIL}", "other"]
    panel = Sweep(STATIC, "memory.disk_path", folders, tiny(3), rounds=3, clock="virtual")
    panel.run()
    assert panel.wait(30)
    check_widget(panel.widget)


def test_the_dashboard_shows_keys(tmp_path: Any) -> None:
    progress = Progress(tmp_path / "progress.json")
    progress.record(f"{EVIL}.flip", "predict", 1, 2)
    assert check_widget(Dashboard(progress).widget)
