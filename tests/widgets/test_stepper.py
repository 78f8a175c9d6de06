"""A figure in several states, moved through by hand."""

from __future__ import annotations

import plotly.graph_objects as go
import pytest

from widgets.figures import LabFigure
from widgets.panels.stepper import Stepper


def made(count: int = 3, start: int = 0) -> tuple[Stepper, list[int]]:
    asked: list[int] = []

    def figure(index: int) -> LabFigure:
        asked.append(index)
        return LabFigure(go.Figure(), "caption", f"state {index}", "alt")

    return Stepper(count, figure, title="States", what="Tile", start=start), asked


def test_every_control_moves_it_and_none_beyond_the_ends(monkeypatch) -> None:
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)
    stepper, asked = made()
    assert stepper.index == 0 and asked == [0]
    stepper.forward.click()
    assert stepper.index == 1 and asked == [0, 1]
    stepper.slider.value = 3
    assert stepper.index == 2 and asked[-1] == 2
    stepper.forward.click()
    assert stepper.index == 2
    stepper.back.click()
    assert stepper.index == 1 and asked[-1] == 1
    for _ in range(5):
        stepper.step(-1)
    assert stepper.index == 0
    assert stepper.view.shown is not None and stepper.view.shown.takeaway == "state 0"


def test_headless_it_says_where_it_stands(monkeypatch) -> None:
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    stepper, _ = made(start=2)
    assert repr(stepper).startswith("States: state 2")


def test_one_state_has_nothing_to_move() -> None:
    stepper, _ = made(1)
    assert stepper.slider.disabled and stepper.index == 0
    stepper.step(1)
    assert stepper.index == 0
    with pytest.raises(ValueError, match="a state to start in"):
        made(2, start=2)
