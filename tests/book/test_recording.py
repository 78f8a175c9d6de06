"""What a run leaves for the book, and what is kept of it."""

from __future__ import annotations

import json
import math
import tomllib
from itertools import pairwise
from typing import Any

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest

from book import capture, motion, record
from book.records import ROOT
from tests.widgets.figures import runs
from widgets.figures.lab_figure import LabFigure
from widgets.panels.stepper import Stepper
from widgets.replays.replay import Replay


def lab(title: str = "A bar", *, x: Any = (3.0, 4.0)) -> LabFigure:
    drawn = go.Figure(go.Bar(x=x, y=["a", "b"], orientation="h"))
    drawn.update_layout(title=title)
    return LabFigure(drawn, "Counted.", "Four.", "Two bars.", [{"a": 3}])


def test_what_is_left_is_json_small_and_without_infinity() -> None:
    left = capture.figure(lab(x=[1 / 3, math.inf, math.nan, -math.inf]))
    text = json.dumps(left, allow_nan=False)
    assert left["plot"]["data"][0]["x"] == [0.333333, None, None, None]
    assert "Four." in left["words"] and left["alt"] == "Two bars." and json.loads(text) == left
    assert capture._json({"a": None, 1: (2, np.arange(2))}) == {"1": [2, [0, 1]]}


def test_a_figure_with_a_motion_of_its_own_keeps_it() -> None:
    own = motion.Motion(["x", "y"], [{}, {}])
    assert capture.figure(lab(), own)["motion"]["labels"] == ["x", "y"]


def test_a_stepper_leaves_all_its_states_and_stands_on_the_last() -> None:
    shown = Stepper(3, lambda n: lab(f"State {n}"), title="A", what="Tile")
    left = capture.stepper(shown)
    assert left["motion"]["labels"] == ["Tile 1 of 3", "Tile 2 of 3", "Tile 3 of 3"]
    titles = [frame["layout"]["title"]["text"] for frame in left["motion"]["frames"]]
    assert titles == ["State 0", "State 1", "State 2"]
    assert left["plot"]["layout"]["title"]["text"] == "State 2" and left["motion"]["start"] == -1


def test_a_replay_takes_as_long_as_its_words_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    shown = Replay({"a": runs.preempting_run()}, ("timeline",), speed=0.5)
    (left,) = capture.replay(shown)
    moving = left["motion"]
    took_s = moving["pace_ms"] / 1e3 * (len(moving["frames"]) - 1)
    assert math.isclose(took_s, shown.moments.last_s / 0.5, rel_tol=1e-3)
    kept = [frame for frame in moving["frames"] if frame]
    assert moving["frames"][0] and len(kept) > 1
    assert all(one != other for one, other in pairwise(kept))


def output(**data: Any) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": {}}


def test_of_each_output_the_piece_is_kept_then_html_then_text() -> None:
    cell = nbformat.v4.new_code_cell("x")
    piece = {record.MIME: {"kind": "figure"}, "text/html": "<p>", "text/plain": "t"}
    cell.outputs = [
        nbformat.from_dict({"output_type": "stream", "name": "stdout", "text": "printed"}),
        nbformat.from_dict(output(**piece)),
        nbformat.from_dict(output(**{"text/html": "<p>", "text/plain": "t"})),
        nbformat.from_dict(output(**{"text/plain": "t"})),
        nbformat.from_dict(output(**{"image/png": "aGk="})),
    ]
    assert list(record._pieces(cell)) == [
        {"kind": "text", "text": "printed"},
        {"kind": "figure"},
        {"kind": "html", "html": "<p>"},
        {"kind": "text", "text": "t"},
    ]


def test_a_signature_figure_is_kept_once_whatever_its_words() -> None:
    named = {"a": {"kind": "figure", "plot": {"data": [1]}, "alt": "one"}}
    same = {"kind": "figure", "plot": {"data": [1]}, "alt": "another"}
    other = {"kind": "figure", "plot": {"data": [2]}, "alt": "one"}
    assert record._by_name(same, named) == {"kind": "named", "name": "a"}
    assert record._by_name(other, named) is other
    assert record._by_name({"kind": "text", "text": ""}, named)["kind"] == "text"


def test_the_last_cell_names_figures_and_those_that_move_by_states() -> None:
    figures = {"44_tree": "tree.figure(-2)", "99_x": "x()"}
    notebook = nbformat.v4.new_notebook(metadata={"minserve": {"figures": figures}})
    code = record._after(notebook)
    assert code.startswith(
        "capture.finish({'44_tree': tree.figure(-2), '99_x': x()}, {'44_tree': ["
    )
    assert code.count("'99_x'") == 1
    compile(code, "last cell", "exec")


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(record.os, "getloadavg", lambda: (2.9, 0.0, 0.0))
    assert record._busy() == ""
    monkeypatch.setattr(record.os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    assert "record it again when it is quiet" in record._busy()


def test_every_motion_of_states_belongs_to_a_signature_figure() -> None:
    named = {
        name
        for path in record.chapters()
        for name in nbformat.read(path, as_version=4).metadata.minserve.get("figures", {})
    }
    moving = tomllib.loads((ROOT / "book/moving.toml").read_text(encoding="utf-8"))
    assert moving.keys() <= named
