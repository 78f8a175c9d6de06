"""The comparison of stored outputs must be able to fail: nbval on copies with one thing broken."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from labs import lint

START = lint.LABS / "00_start_here.ipynb"


def part(*wanted: str) -> lint.Notebook:
    """Chapter 00 with the cells of these tags, the facts, and whatever has neither code nor tag."""
    notebook = copy.deepcopy(lint.read(START))
    notebook["cells"] = [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and set(wanted) & set(lint.tags(cell))
    ]
    return notebook


def change(notebook: lint.Notebook, old: str, new: str) -> None:
    """Replace code that must be there."""
    hits = [cell for cell in notebook["cells"] if old in lint.source(cell)]
    assert hits, f"{old} is not in the chapter any more"
    for cell in hits:
        cell["source"] = lint.source(cell).replace(old, new).splitlines(keepends=True)


def nbval(notebook: lint.Notebook, folder: Path) -> tuple[int, str]:
    """Exit code and report of the comparison that CI makes."""
    path = folder / "chapter.ipynb"
    path.write_text(json.dumps(notebook))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--nbval-lax",
               "--nbval-current-env", "--nbval-cell-timeout=300", str(path)]  # fmt: skip
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600,
        env=os.environ | {"MINSERVE_HEADLESS": "1", "PYTHONPATH": str(lint.ROOT)},
    )  # fmt: skip
    return done.returncode, done.stdout


def facts_of_the_model() -> lint.Notebook:
    notebook = part("model", "nbval-check-output")
    notebook["cells"] = [cell for cell in notebook["cells"] if "race" not in lint.source(cell)]
    change(notebook, "max_tokens=200", "max_tokens=2")
    assert len(notebook["cells"]) == 2
    return notebook


@pytest.mark.slow
def test_a_corrupted_output_goes_red_and_the_stored_one_is_green(tmp_path):
    notebook = facts_of_the_model()
    code, said = nbval(notebook, tmp_path)
    assert code == 0, said
    output = notebook["cells"][-1]["outputs"][0]
    output["text"] = "".join(output["text"]).replace("8 layers", "9 layers")
    code, said = nbval(notebook, tmp_path)
    assert code == 1 and "9 layers" in said


@pytest.mark.slow
def test_a_broken_switch_goes_red(tmp_path):
    notebook = part("model", "race", "guess", "nbval-check-output")
    for old, new in (("max_tokens=200", "max_tokens=2"), ("rounds=3", "rounds=1"),
                     ("320, 200", "320, 16")):  # fmt: skip
        change(notebook, old, new)
    node = nbformat.reads(json.dumps(notebook), as_version=4)
    NotebookClient(node, resources={"metadata": {"path": str(tmp_path)}}).execute(
        env=os.environ | {"MINSERVE_HEADLESS": "1", "PYTHONPATH": str(lint.ROOT)}
    )
    stored = json.loads(nbformat.writes(node))
    change(stored, '{"memory.kv_cache": True}', '{"memory.kv_cache": False}')
    code, said = nbval(stored, tmp_path)
    assert code == 1 and "0 bytes kept" in said


@pytest.mark.slow
def test_an_error_in_a_panels_thread_reaches_the_last_cell(tmp_path):
    notebook = facts_of_the_model()
    last = lint.code_cells(lint.read(START))[-1]
    broken = """
import os; os.environ.pop("MINSERVE_HEADLESS")
from widgets.workers import Worker
worker = Worker("a panel")
worker.start(lambda job: 1 / 0)
"""
    notebook["cells"] = [notebook["cells"][0] | {"source": [broken], "id": "broken"}, last]
    code, said = nbval(notebook, tmp_path)
    assert code == 1 and "ZeroDivisionError" in said
