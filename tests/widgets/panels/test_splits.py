"""The panel of split contexts: counts and a model, and every control moves them."""

from __future__ import annotations

import pytest

from minserve.bench.workloads.shapes import SHAPES
from widgets.panels.splits import Splits

MIXER = SHAPES["llama-3.1-8b"].spec().layers[0].mixer


@pytest.fixture(params=["", "1"], ids=["drawn", "headless"])
def panel(request, monkeypatch) -> Splits:
    monkeypatch.setenv("MINSERVE_HEADLESS", request.param)
    made = Splits(MIXER)
    made.run()
    assert made.wait(60)
    return made


def test_it_says_which_side_wins_and_draws(panel: Splits) -> None:
    result = panel.result
    assert result.ratio < 1 and "faster" in panel.words.value
    assert panel.view.shown is not None and len(panel.view.shown.table) == 7
    facts = result.facts()
    assert facts["the engine takes"] == "8 parts"
    assert facts["16 parts lose from"] == f"{result.losing_from} requests"


@pytest.mark.parametrize(
    ("name", "value"), [("requests", 64), ("context", 128), ("parts", 2), ("gpu", "T4")]
)
def test_every_control_moves_the_result(panel: Splits, name: str, value: object) -> None:
    before = panel.result.ratio
    panel.controls[name].value = value
    panel.run()
    assert panel.wait(60)
    assert panel.result.ratio != before
    assert ("slower" in panel.words.value) == (panel.result.ratio > 1)
