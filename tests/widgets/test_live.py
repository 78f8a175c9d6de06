"""Live figures are sent whole and small, and the page may draw them whenever it is ready."""

from __future__ import annotations

import json
import threading
from typing import Any

import comm
import plotly.graph_objects as go
import pytest
from comm.base_comm import BaseComm

from widgets.figures.lab_figure import LabFigure
from widgets.panels.views import FigureView
from widgets.replays.live import LiveFigure, prepare

Wire = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """What goes to the page: (kind of message, state), in order; plotly.js is there already."""
    sent: Wire = []
    prepare()

    class Recorder(BaseComm):
        def publish_msg(self, msg_type: str, data: Any = None, *args: Any, **keys: Any) -> None:
            sent.append((msg_type, (data or {}).get("state", {})))

    monkeypatch.setattr(comm, "create_comm", lambda *args, **keys: Recorder(*args, **keys))
    return sent


def figure(*heights: int, traces: int = 1) -> go.Figure:
    return go.Figure([go.Scatter(y=list(heights)) for _ in range(traces)])


def test_a_figure_opens_with_its_data_and_without_plotly_js(wire: Wire) -> None:
    LiveFigure(figure(1, 2, 3))
    ((kind, state),) = (each for each in wire if "traces" in each[1])
    assert kind == "comm_open"
    assert [trace["y"] for trace in state["traces"]] == [[1, 2, 3]]
    assert state["design"]["autosize"] is True and "width" not in state["design"]
    assert state["config"]["displayModeBar"] is False
    assert len(json.dumps(state)) < 50_000
    assert len(prepare().source) > 1_000_000 and "Plotly" in prepare().source


def test_a_drawing_is_one_message_with_the_whole_figure(wire: Wire) -> None:
    live = LiveFigure(figure(1))
    wire.clear()
    live.show(figure(3, 4, traces=2).update_layout(title="more"))
    ((_, state),) = wire
    assert [trace["y"] for trace in state["traces"]] == [[3, 4], [3, 4]]
    assert state["design"]["title"]["text"] == "more"
    assert state["design"]["uirevision"], "or the reader's zoom would end with every drawing"


def test_what_stays_equal_is_not_sent_again(wire: Wire) -> None:
    live = LiveFigure(figure(1, 2).add_vline(x=0))
    wire.clear()

    def move(plot: go.Figure) -> None:
        plot.layout.shapes[0].x0 = 7

    live.change(move)
    ((_, state),) = wire
    assert state["design"]["shapes"][0]["x0"] == 7 and "traces" not in state


def test_a_view_shows_the_newest_figure_and_its_words() -> None:
    view = FigureView()
    for n in (1, 2, 3):
        view.draw(LabFigure(figure(n, traces=n), "", f"number {n}", ""))
    plot, words = view.widget.children
    assert [trace["y"] for trace in plot.traces] == [[3]] * 3
    assert "number 3" in words.value and "number 1" not in words.value


def test_two_threads_do_not_change_a_figure_at_once() -> None:
    live = LiveFigure(figure(1))
    order: list[str] = []
    other = threading.Thread(target=lambda: live.change(lambda plot: order.append("other")))

    def slow(plot: go.Figure) -> None:
        other.start()
        other.join(0.05)
        order.append("first")

    live.change(slow)
    other.join()
    assert order == ["first", "other"]
