"""Predict and Compare while requests arrive: nothing is seen before Commit, and a slider acts.

The notebook is this file's own, so that arrivals are slow enough to be watched.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
from browser.lab import RUN_MS, Lab, Notebook

pytestmark = pytest.mark.browser

TITLE = "Requests that arrive"
REPLAY = "One run again"
HIDDEN = "Hidden until you commit"
RATE_PER_S, REQUESTS, SLOTS = 0.25, 240, 6
"""A round at this rate would take sixteen minutes, twice as long as any test waits."""

CELLS = (
    f"""
from minserve import EngineConfig, SchedulingConfig, TraceConfig
from minserve.bench.workloads.traffic import fixed_length, poisson
from widgets.panels import Compare, Predict
from widgets.scoring.questions import Prediction, Question, Reason
from widgets.replays.replay import Replay

prompts = [[2 + n, 3 + n, 5 + n] for n in range({REQUESTS})]
compare = Compare(
    EngineConfig(
        dtype="float32",
        scheduling=SchedulingConfig(policy="static", max_num_seqs={SLOTS}),
        trace=TraceConfig(per_request=True, pages=True),
    ),
    switch={{"scheduling.policy": "continuous"}},
    workload=poisson(prompts, [fixed_length(4) for _ in prompts], rate_per_s={RATE_PER_S}),
    rate=({RATE_PER_S}, 512),
    rounds=3,
    names=("static", "continuous"),
    title="{TITLE}",
)
reasons = (Reason("one", "yes", True), Reason("two", "no"), Reason("three", "no"))
question = Question("peak_kv_bytes", "KV bytes?", reasons)  # counted: a verdict on any machine
Predict(compare, Prediction((question,), key="99.flip"))
""",
    """
compare.run()
compare
""",
    f"""
compare.also(
    lambda result: Replay(result.traces["continuous"], ["timeline", "pages"], title="{REPLAY}")
)
""",
)


@pytest.fixture(scope="module")
def notebook(lab: Lab, open_notebook: Callable[[str], Notebook]) -> Notebook:
    lab.add("99_live_panels.ipynb", [cell.strip() for cell in CELLS])
    opened = open_notebook("99_live_panels.ipynb")
    opened.run_all()
    return opened


def _highest(plot: dict[str, Any]) -> float:
    return max(trace["highest"] for trace in plot["traces"])


def test_before_commit_nothing_runs_and_nothing_is_shown(notebook: Notebook) -> None:
    from playwright.sync_api import expect

    notebook.wait_until_all_ran()
    panel, predict = notebook.panel(TITLE), notebook.panel("Predict")
    waits = panel.get_by_text("Runs when you commit to a prediction above")
    expect(waits).to_be_visible()
    panel.get_by_role("button", name="Run", exact=True).click()
    expect(waits).to_be_visible()
    predict.get_by_role("button", name="Commit").click()
    expect(predict.get_by_text("Choose something first.")).to_be_visible()
    assert notebook.outputs.get_by_text(HIDDEN).count() == 2
    expect(notebook.plots).to_have_count(0)
    expect(panel.get_by_text("Drawn live")).to_have_count(0)


def test_commit_starts_the_run_in_view(notebook: Notebook) -> None:
    from playwright.sync_api import expect

    panel, predict = notebook.panel(TITLE), notebook.panel("Predict")
    predict.get_by_role("radio", name="goes up").check()
    predict.get_by_role("button", name="Commit").click()
    expect(predict.get_by_text("Committed. Watch the run.")).to_be_visible()
    expect(panel.get_by_text("Live: “static” is running.")).to_be_visible(timeout=RUN_MS)
    expect(panel.get_by_text("Drawn live")).to_be_visible()
    assert notebook.drawn_plot(panel)["traces"]
    assert "99.flip" not in notebook.lab.scores()


def test_the_rate_is_dragged_while_the_engine_runs_and_the_plot_follows(
    notebook: Notebook,
) -> None:
    from playwright.sync_api import expect

    panel = notebook.panel(TITLE)
    rate = notebook.slider(panel, "arrivals per second")
    running = panel.get_by_text("Live: “static” is running.")
    expect(rate.locator(".widget-readout")).to_have_text("0.250")
    expect(running).to_be_visible()
    before = notebook.drawn_plot(panel)
    notebook.drag(rate, 1.0)
    expect(rate.locator(".widget-readout")).to_have_text("512")

    # All requests are there at once: instead of one or two, as many as there are slots share the
    # memory, on any machine. And the round is over long before its time.
    height = 2 * _highest(before)
    notebook.wait_for(lambda: _highest(notebook.plot(panel)) > height, "the curve to rise")
    assert notebook.plot(panel)["drawn"] != before["drawn"]
    expect(running).to_have_count(0, timeout=RUN_MS)
    expect(
        panel.get_by_text(re.compile("Live: “continuous”|Measuring|Counting|Done"))
    ).to_be_visible()


def test_the_prediction_is_scored_when_the_run_ends(notebook: Notebook) -> None:
    from playwright.sync_api import expect

    panel, predict = notebook.panel(TITLE), notebook.panel("Predict")
    expect(panel.get_by_text("Done.", exact=True)).to_be_visible(timeout=RUN_MS)
    expect(predict.get_by_text("You had 0 of 3")).to_be_visible()
    expect(predict.get_by_text(re.compile("direction, (right|not so)"))).to_be_visible()
    assert notebook.lab.scores()["99.flip"]["out_of"] == 3
    expect(panel.get_by_role("alert")).to_have_count(0)
    expect(notebook.errors).to_have_count(0)


def test_more_opens_by_a_click(notebook: Notebook) -> None:
    from playwright.sync_api import expect

    panel = notebook.panel(TITLE)
    expect(panel.locator(".js-plotly-plot:visible")).to_have_count(1)
    panel.get_by_text("Latency distributions").click()
    expect(panel.locator(".js-plotly-plot:visible")).to_have_count(2)
    panel.get_by_text("All numbers, with their spread").click()
    expect(panel.get_by_role("cell", name="output tokens per second")).to_be_visible()


def test_a_replays_cursor_and_pages_follow_the_scrubber(notebook: Notebook) -> None:
    from playwright.sync_api import expect

    replay = notebook.replays
    label = replay.get_by_text(re.compile(r"of \d+ steps"))
    expect(replay.locator(".js-plotly-plot")).to_have_count(2)
    before, words = notebook.drawn_plot(replay)["cursors"], label.inner_text()
    heading = replay.locator(".gtitle").filter(has_text="Pages")
    pages = heading.text_content()
    notebook.drag(notebook.slider(replay, "Moment"), 0.6)
    expect(label).not_to_have_text(words)
    expect(heading).not_to_have_text(pages or "")
    assert before
    notebook.wait_for(
        lambda: all(map(operator.gt, notebook.plot(replay)["cursors"], before)),
        "the timeline's cursor to move on",
    )
    # From the keyboard as well.
    words = label.inner_text()
    notebook.slider(replay, "Moment").get_by_role("slider").press("ArrowRight")
    expect(label).not_to_have_text(words)


def test_stop_ends_a_run_that_waits_for_arrivals(notebook: Notebook) -> None:
    from playwright.sync_api import expect

    panel = notebook.panel(TITLE)
    notebook.drag(notebook.slider(panel, "arrivals per second"), 0.0)
    panel.get_by_role("button", name="Run").click()
    expect(panel.get_by_text("Live: “static” is running.")).to_be_visible(timeout=RUN_MS)
    panel.get_by_role("button", name="Stop").click()
    expect(panel.get_by_text("Stopped. Nothing is quoted from this run.")).to_be_visible()
    expect(panel.get_by_role("button", name="Run")).to_be_enabled()
