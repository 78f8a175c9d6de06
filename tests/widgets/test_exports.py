"""A chapter that a program runs (nbconvert, papermill): words for panels, figures, a small file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from widgets import theme
from widgets.figures.render import MIME

ROOT = Path(__file__).resolve().parents[2]
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
CELLS = (
    """
from minserve import EngineConfig, SchedulingConfig
from minserve.bench.workloads.traffic import at_once, fixed_length
from widgets.figures import slots
from widgets.panels import Compare

traffic = at_once([[2 + n, 3 + n] for n in range(12)], [fixed_length(4 + n) for n in range(12)])
base = EngineConfig(dtype="float32", scheduling=SchedulingConfig(policy="static", max_num_seqs=4))
compare = Compare(base, {"scheduling.policy": "continuous"}, traffic, headline="steps",
                  clock="virtual", title="A race")
compare.run()
compare
""",
    "compare.show_facts()",
    "compare.also(lambda result: slots(result.traces))",
    "slots(compare.result.traces).show()",
)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "race.ipynb")
    return folder / "race.ipynb"


def environment(notebook: Path, **more: str) -> dict[str, str]:
    mine = {name: text for name, text in os.environ.items() if name != "MINSERVE_HEADLESS"}
    scores = str(notebook.with_name("progress.json"))
    return mine | {"PYTHONPATH": str(ROOT), "MINSERVE_PROGRESS": scores} | more


def executed(notebook: Path, **more: str) -> Any:
    node = nbformat.read(notebook, as_version=4)
    NotebookClient(node, timeout=300).execute(env=environment(notebook, **more))
    return node


def outputs(node: Any) -> list[Any]:
    return [output for cell in node.cells for output in cell.outputs]


def test_an_export_has_the_figures_the_facts_and_no_panel_without_a_kernel(notebook: Path):
    command = ["-m", "nbconvert", "--execute", "--to", "html", str(notebook)]
    subprocess.run(
        [sys.executable, *command], env=environment(notebook), check=True, capture_output=True
    )
    page = notebook.with_suffix(".html").read_text(encoding="utf-8")
    assert len(re.findall(r"Plotly\.newPlot\(", page)) == 2
    assert "The figure is drawn where plotly is installed" not in page
    assert "Compare: A race" in page and "steps" in page
    assert VIEW not in page and "_model_module" not in page
    assert len(page) < 1_000_000


def test_a_run_by_a_program_stores_no_state_of_widgets(notebook: Path):
    node = executed(notebook)
    shown = [each.data for each in outputs(node) if "data" in each]
    assert not any(VIEW in data for data in shown)
    assert not node.metadata.get("widgets", {}).get(STATE, {}).get("state")
    figures = [data for data in shown if MIME in data]
    assert len(figures) == 2 and all("Plotly.newPlot" in each["text/html"] for each in figures)


def test_as_stored_there_are_words_alone(notebook: Path):
    node = executed(notebook, MINSERVE_HEADLESS="1")
    data = [each.data for each in outputs(node) if "data" in each]
    assert data and all(set(each) == {"text/plain"} for each in data)
    assert len(nbformat.writes(node)) < 10_000


def test_a_reader_can_be_announced(notebook: Path):
    node = executed(notebook, MINSERVE_HEADLESS="0")
    assert any(VIEW in each.data for each in outputs(node) if "data" in each)


def test_outside_a_kernel_there_is_no_program_that_runs_cells(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)
    assert not theme.unattended() and not theme.headless() and not theme.words_only()
