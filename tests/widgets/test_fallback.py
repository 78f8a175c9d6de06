"""Where no widget can be shown, the reader gets a sentence and the way to the static figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import CapturedIO, capture_output

from minserve.trace import RunTrace
from tests.widgets.figures import runs
from tests.widgets.panels.tiny_runs import BASE, tiny
from widgets import workers
from widgets.notebooks.fallback import NO_WIDGETS
from widgets.panels import Compare, Estimate
from widgets.replays.replay import Replay
from widgets.scoring.progress import dashboard
from widgets.scoring.questions import Quantity

WIDGET = "application/vnd.jupyter.widget-view+json"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)
    yield
    workers._live.clear()


@pytest.fixture(scope="module")
def trace() -> RunTrace:
    return runs.preempting_run()


def displayed(show: Any) -> dict[str, Any]:
    """What a cell sends to the page."""
    InteractiveShell.instance()
    captured: CapturedIO
    with capture_output(stdout=False, stderr=False) as captured:
        show()
    (output,) = captured.outputs
    return dict(output.data)


def test_the_sentence_leads_to_figures_that_are_there() -> None:
    assert "labs/figures/" in NO_WIDGETS
    assert list((ROOT / "labs" / "figures").glob("00_*.svg"))


def test_a_panel_brings_its_words_for_front_ends_without_widgets() -> None:
    race = Compare(BASE, {"seed": 1}, tiny(2), title="A race")
    guess = Estimate(Quantity("How many?", key="x.y"), 3.0)
    for panel, words in ((race, "Compare: A race"), (guess, "Estimate: How many?")):
        bundle = panel._repr_mimebundle_()
        assert WIDGET in bundle
        assert bundle["text/plain"] == f"{words}\n{NO_WIDGETS}"
    assert displayed(lambda: race.also(lambda result: "later"))["text/plain"].startswith("A race")


def test_a_replay_and_the_scores_do_too(trace: RunTrace) -> None:
    replay = Replay(trace, title="Once more")
    bundle = displayed(replay._ipython_display_)
    assert WIDGET in bundle
    assert bundle["text/plain"].startswith("Once more: timeline") and "VBox" not in str(bundle)
    assert bundle["text/plain"].endswith(NO_WIDGETS)
    replay.close()
    assert dashboard()._repr_mimebundle_()["text/plain"].endswith(NO_WIDGETS)
