"""Live figures reach the page whole, and nothing that is drawn early is lost."""

from __future__ import annotations

import threading
from typing import Any

import comm
import plotly.graph_objects as go
import pytest
from comm.base_comm import BaseComm

from tests.widgets.front_end import front_end_draws
from widgets.figures.lab_figure import LabFigure
from widgets.live import LiveFigure
from widgets.panels.views import FigureView


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What goes to the page: (kind of message, state), in order."""
    sent: list[tuple[str, dict[str, Any]]] = []

    class Wire(BaseComm):
        def publish_msg(self, msg_type: str, data: Any = None, *args: Any, **keys: Any) -> None:
            sent.append((msg_type, (data or {}).get("state", {})))

    monkeypatch.setattr(comm, "create_comm", lambda *args, **keys: Wire(*args, **keys))
    return sent


def figure(*heights: int, traces: int = 1) -> go.Figure:
    return go.Figure([go.Scatter(y=list(heights)) for _ in range(traces)])


def test_a_figure_opens_with_its_data_and_needs_nothing_more(
    wire: list[tuple[str, dict[str, Any]]],
) -> None:
    live = LiveFigure(figure(1, 2, 3))
    mine = [(kind, state) for kind, state in wire if "_esm" in state or "_widget_data" in state]
    ((kind, state),) = mine
    assert kind == "comm_open" and live.widget.comm is not None
    assert list(state["_widget_data"][0]["y"]) == [1, 2, 3]
    assert state["_widget_layout"]["autosize"] is True
    assert state["_config"]["displayModeBar"] is False
    assert "width" not in state["_widget_layout"]


def test_changes_wait_for_the_page_and_the_newest_is_made_then() -> None:
    live = LiveFigure(figure(1))
    made: list[str] = []
    live.change(lambda plot: made.append("early"))
    live.change(lambda plot: made.append("newest"))
    assert made == []
    front_end_draws(live.widget)
    assert made == ["newest"]
    assert live.widget.layout.meta, "a change of the layout makes plotly measure the width"
    live.change(lambda plot: made.append("later"))
    front_end_draws(live.widget)
    assert made == ["newest", "later"]


def test_a_view_drawn_while_the_page_loads_ends_up_with_the_newest_traces() -> None:
    view = FigureView()
    view.draw(LabFigure(figure(1, 2), "", "first", ""))
    view.draw(LabFigure(figure(3, 4, traces=2), "", "second", ""))
    plot, words = view.widget.children
    assert len(plot.data) == 1 and "second" in words.value
    front_end_draws(plot)
    assert [list(trace.y) for trace in plot.data] == [[3, 4], [3, 4]]
    view.draw(LabFigure(figure(5), "", "third", ""))
    assert [list(trace.y) for trace in plot.data] == [[5]]


def test_two_threads_do_not_change_a_figure_at_once() -> None:
    live = LiveFigure(figure(1))
    front_end_draws(live.widget)
    order: list[str] = []
    other = threading.Thread(target=lambda: live.change(lambda plot: order.append("other")))

    def slow(plot: Any) -> None:
        other.start()
        other.join(0.05)
        order.append("first")

    live.change(slow)
    other.join()
    assert order == ["first", "other"]
