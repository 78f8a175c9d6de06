"""A notebook that was saved and closed: words in place of panels, and figures as they were."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from tests.browser.lab import RUN_MS, Lab, Notebook
from widgets.notebooks.fallback import NO_WIDGETS

pytestmark = pytest.mark.browser

NAME, TITLE = "97_reopened.ipynb", "Saved and opened again"
CELLS = (
    f"""
from minserve import EngineConfig, SchedulingConfig
from minserve.bench.workloads.traffic import at_once, fixed_length
from widgets.figures import slots
from widgets.panels import Compare
from widgets.scoring.progress import dashboard

traffic = at_once([[2 + n, 3 + n] for n in range(12)], [fixed_length(4 + n) for n in range(12)])
base = EngineConfig(dtype="float32", scheduling=SchedulingConfig(policy="static", max_num_seqs=4))
compare = Compare(base, {{"scheduling.policy": "continuous"}}, traffic, headline="steps",
                  clock="virtual", title="{TITLE}")
compare.run()
compare
""",
    "slots(compare.result.traces)",
    "dashboard()",
    "import ipywidgets\nipywidgets.Button(description='Not of the lab')",
)
PLOT = ".jp-Notebook .jp-RenderedPlotly"
DEAD = re.compile("Error displaying widget|Loading widget")


def save(notebook: Notebook) -> None:
    notebook.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    notebook.page.wait_for_timeout(1000)


def test_a_saved_notebook_keeps_words_and_the_page_its_panels(
    lab: Lab, open_notebook: Callable[[str], Notebook]
) -> None:
    from playwright.sync_api import expect

    lab.add(NAME, [cell.strip() for cell in CELLS])
    notebook = open_notebook(NAME)
    notebook.run_all()
    notebook.wait_until_all_ran()
    panel = notebook.panel(TITLE)
    expect(panel.get_by_text("Done.", exact=True)).to_be_visible(timeout=RUN_MS)
    expect(notebook.page.locator(PLOT)).to_have_count(1)
    notebook.page.wait_for_timeout(2000)  # JupyterLab adds an image of what was drawn.
    save(notebook)
    expect(panel.get_by_role("button", name="Run", exact=True)).to_be_visible()
    stored = json.loads((lab.work / NAME).read_text(encoding="utf-8"))
    outputs = [output["data"] for cell in stored["cells"] for output in cell["outputs"]]
    views = ["application/vnd.jupyter.widget-view+json" in each for each in outputs]
    # The last one is a plain ipywidget, not a panel.
    assert views == [False] * (len(views) - 1) + [True]
    assert "widgets" not in stored["metadata"]
    drawn = [each for each in outputs if "Plotly.newPlot" in "".join(each.get("text/html", ""))]
    assert len(drawn) == 1 and not {"image/png", "application/vnd.plotly.v1+json"} & set(drawn[0])
    text = (lab.work / NAME).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 400 and len(text) < 80_000


def test_while_the_kernel_runs_a_reload_shows_the_panels(
    lab: Lab, open_notebook: Callable[[str], Notebook]
) -> None:
    from playwright.sync_api import expect

    notebook = open_notebook(NAME)
    panel = notebook.panel(TITLE)
    expect(panel.get_by_text("Done.", exact=True)).to_be_visible(timeout=RUN_MS)


def test_after_the_kernel_has_ended_there_are_words_and_no_error(
    lab: Lab, open_notebook: Callable[[str], Notebook]
) -> None:
    from playwright.sync_api import expect

    lab.end_kernels()
    notebook = open_notebook(NAME)
    said = notebook.outputs.filter(has_text=NO_WIDGETS)
    expect(said).to_have_count(2)
    expect(said.first).to_contain_text(f"Compare: {TITLE}")
    expect(said.first).to_contain_text("Run All Cells")
    expect(notebook.page.locator(f"{PLOT} .js-plotly-plot, {PLOT}.js-plotly-plot")).to_be_visible()
    # Of the lab's own outputs none is an error.
    expect(notebook.outputs.filter(has_text=DEAD)).to_have_count(1)
    notebook.run_all()
    notebook.wait_until_all_ran()
    expect(notebook.panel(TITLE).get_by_text("Done.", exact=True)).to_be_visible(timeout=RUN_MS)
    expect(said).to_have_count(0)
