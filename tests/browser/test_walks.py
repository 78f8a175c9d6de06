"""A reader's way through each chapter: commit, stop, run again, answer, and restart.

Two chapters are drawn; with `--full` all of them are walked. What was committed and answered is
there again after *Restart and Run All*, and counts once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import sampled
from browser.lab import ROOT, RUN_MS, Lab, Notebook

if TYPE_CHECKING:
    from playwright.sync_api import Locator

pytestmark = pytest.mark.browser

CHAPTERS = sorted(path.stem for path in (ROOT / "labs" / "questions").glob("*.toml"))
DRAWN = sampled.drawn({"walks": CHAPTERS}, {"walks": 2}, sampled.seed)
RADIOS = 6
"""Of a question: three directions and three reasons."""
ASKED = "predict", "estimate", "recap"
"""Kinds of score. An exercise counts again whenever its cell runs."""
SCORED = re.compile("You had|too busy for a verdict")
JUDGED = re.compile("Right: it is|Not so: it is|There is no such value here")
RECAP = re.compile("right at the first answer")


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=() if n in DRAWN else pytest.mark.full) for n in CHAPTERS]
)
def test_a_reader_walks_a_chapter(
    number: str, lab: Lab, open_notebook: Callable[[str], Notebook]
) -> None:
    from playwright.sync_api import expect

    (path,) = (ROOT / "labs").glob(f"{number}_*.ipynb")
    # Another test may have been shown the answers.
    (lab.work / "progress.json").unlink(missing_ok=True)
    notebook = open_notebook(path.name)
    page = notebook.page
    notebook.run_all()
    notebook.wait_until_all_ran()
    predicts = with_button(notebook, "Commit")
    for panel in predicts.all():
        predict(panel, stop=running(notebook))
    notebook.wait_for(lambda: not running(notebook).count(), "the runs behind the predictions")
    for panel in notebook.estimates.all():
        estimate(panel)
    recap = with_button(notebook, "Show the ledger").first
    answer(recap)
    expect(recap.get_by_text(RECAP)).to_be_visible()
    expect(notebook.errors).to_have_count(0)
    notebook.wait_for(lambda: len(ours(lab, number)) > 1, "the scores")
    asked = (*predicts.all(), *notebook.estimates.all(), recap)
    before, said = ours(lab, number), [words(panel) for panel in asked]

    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("Restart Kernel and Run All Cells")).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    expect(recap.get_by_text(RECAP)).to_be_visible(timeout=RUN_MS)
    notebook.wait_until_all_ran()
    for panel in predicts.all():
        expect(panel.get_by_text(SCORED)).to_be_visible(timeout=RUN_MS)
    for panel in notebook.estimates.all():
        expect(panel.get_by_text(JUDGED)).to_be_visible(timeout=RUN_MS)
    expect(notebook.errors).to_have_count(0)
    after = ours(lab, number)
    # A machine too busy for a verdict before the restart may have one now.
    assert {key: after[key] for key in before} == before, "a restart is not another try"
    assert [words(panel) for panel in asked] == said
    page.close()
    lab.end_kernels()


def predict(panel: Locator, stop: Locator) -> None:
    """Choose for each question, commit, stop the run, and start it again."""
    from playwright.sync_api import expect

    radios = panel.get_by_role("radio")
    assert radios.count() % RADIOS == 0 and radios.count()
    for question in range(radios.count() // RADIOS):
        radios.nth(RADIOS * question + question % 3).check()
        radios.nth(RADIOS * question + 3 + question % 3).check()
    panel.get_by_role("button", name="Commit", exact=True).click()
    expect(panel.get_by_role("button", name="Predict again")).to_be_enabled(timeout=RUN_MS)
    if stop.count():
        stop.first.click()
        expect(stop).to_have_count(0, timeout=RUN_MS)
        # A run so short that it ended first has its score.
        known = re.compile("the run gave no result. Run it again|You had")
        expect(panel.get_by_text(known)).to_be_visible(timeout=RUN_MS)
        run = panel.page.locator(".jp-Notebook").get_by_role("button", name="Run", exact=True)
        run.and_(panel.page.locator(":enabled:visible")).first.click()
    expect(panel.get_by_text(SCORED)).to_be_visible(timeout=RUN_MS)


def estimate(panel: Locator) -> None:
    """Give the first of the choices, or the number 7, and read what is said of it."""
    from playwright.sync_api import expect

    typed = panel.get_by_role("textbox", name="Your estimate")
    if typed.count():
        typed.fill("7")
    else:
        panel.locator(".widget-toggle-button").first.click()
    panel.get_by_role("button", name="Check", exact=True).click()
    expect(panel.get_by_text(JUDGED)).to_be_visible(timeout=RUN_MS)


def answer(recap: Locator) -> None:
    """The first answer to the first question, the second to the second, and so on."""
    from playwright.sync_api import expect

    buttons = recap.get_by_role("button", name="Answer", exact=True)
    count, radios = buttons.count(), recap.get_by_role("radio")
    each = radios.count() // count
    for question in range(count):
        radios.nth(each * question + question % each).check()
        buttons.nth(question).click()
        expect(recap.get_by_text(re.compile(r"[✓✗]"))).to_have_count(question + 1)


def with_button(notebook: Notebook, name: str) -> Locator:
    """The outputs that have a button of this name."""
    return notebook.outputs.filter(has=notebook.page.get_by_role("button", name=name, exact=True))


def running(notebook: Notebook) -> Locator:
    """Buttons of runs that are under way."""
    stop = notebook.outputs.get_by_role("button", name="Stop", exact=True)
    return stop.and_(notebook.page.locator(":enabled:visible"))


def ours(lab: Lab, number: str) -> dict[str, Any]:
    """The chapter's scores of what is asked."""
    return {
        key: score
        for key, score in lab.scores().items()
        if key.startswith(f"{number}.") and score["kind"] in ASKED
    }


def words(panel: Locator) -> list[str]:
    """What was chosen or typed in a panel."""
    chosen = panel.locator("label:has(input[type=radio]:checked), .widget-toggle-button.mod-active")
    typed = panel.get_by_role("textbox").all()
    return [" ".join(each.split()) for each in chosen.all_inner_texts()] + [
        each.input_value() for each in typed
    ]
