"""Commitments outlive the kernel: after Restart and Run All, predictions and estimates are back."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.browser.lab import RUN_MS, Lab, Notebook

pytestmark = pytest.mark.browser

TITLE, SWEEP = "Static or continuous", "What a slot is worth"
CELLS = (
    f"""
from minserve import EngineConfig, SchedulingConfig
from minserve.bench.workloads.traffic import at_once, fixed_length
from widgets.panels import Compare, Estimate, Predict, Sweep
from widgets.scoring.questions import Prediction, Quantity, Question, Reason

lengths = [fixed_length(4 + 7 * n % 12) for n in range(12)]
traffic = at_once([[2 + n, 3 + n] for n in range(12)], lengths)
base = EngineConfig(dtype="float32", scheduling=SchedulingConfig(policy="static", max_num_seqs=4))
compare = Compare(base, {{"scheduling.policy": "continuous"}}, traffic, headline="steps",
                  clock="virtual", title="{TITLE}")
sweep = Sweep(base, "scheduling.max_num_seqs", (1, 2, 4), traffic, metric="steps",
              clock="virtual", title="{SWEEP}")
reasons = (Reason("one", "yes", True), Reason("two", "no"), Reason("three", "no"))
Predict(compare, Prediction((Question("steps", "Steps?", reasons),), key="98.flip"))
""",
    """
compare.run()
compare
""",
    """
guess = Estimate(
    Quantity("Steps with one slot?", truth="sweep.result.points[1].median", key="98.steps"),
    globals(),
    panels=[sweep],
)
sweep.run()
guess
""",
    "sweep",
)


def test_a_commitment_starts_the_run_and_is_back_after_a_restart(
    lab: Lab, open_notebook: Callable[[str], Notebook]
) -> None:
    from playwright.sync_api import expect

    lab.add("98_restart.ipynb", [cell.strip() for cell in CELLS])
    notebook = open_notebook("98_restart.ipynb")
    page = notebook.page
    notebook.run_all()
    notebook.wait_until_all_ran()
    panel, sweep, predict = (notebook.panel(each) for each in (TITLE, SWEEP, "Predict"))
    expect(panel.get_by_text("Runs when you commit to a prediction above")).to_be_visible()
    expect(sweep.get_by_text("Runs when you have given your estimate above")).to_be_visible()
    predict.get_by_role("radio", name="goes down").check()
    predict.get_by_role("radio", name="two").check()
    predict.get_by_role("button", name="Commit").click()
    expect(panel.get_by_text("Done.", exact=True)).to_be_visible(timeout=RUN_MS)
    had = predict.get_by_text(re.compile("You had 1 of 3"))
    expect(had).to_be_visible()
    estimate = notebook.estimates.first
    estimate.get_by_role("textbox", name="Your estimate").fill("1")
    estimate.get_by_role("button", name="Check").click()
    lower = estimate.get_by_text(re.compile("Not so: it is .*x higher than 1"))
    expect(lower).to_be_visible(timeout=RUN_MS)
    scores = lab.scores()
    assert scores["98.flip"]["tries"] == scores["98.steps"]["tries"] == 1

    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("Restart Kernel and Run All Cells")).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    expect(predict.get_by_role("button", name="Predict again")).to_be_enabled(timeout=RUN_MS)
    expect(panel.get_by_text("Done.", exact=True)).to_be_visible(timeout=RUN_MS)
    expect(had).to_be_visible()
    expect(predict.get_by_role("radio", name="two")).to_be_checked()
    expect(predict.get_by_role("radio", name="two")).to_be_disabled()
    expect(lower).to_be_visible(timeout=RUN_MS)
    assert lab.scores() == scores
    expect(notebook.errors).to_have_count(0)
    # A wrong estimate may be tried again.
    estimate.get_by_role("textbox", name="Your estimate").fill("114")
    estimate.get_by_role("button", name="Check").click()
    expect(
        estimate.get_by_text(re.compile("Right: it is .* The first answer counts"))
    ).to_be_visible()
    assert lab.scores() == scores
