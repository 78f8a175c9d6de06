"""A chapter shows the code that runs: what `inspect.getsource` printed is still in the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import minserve

LABS = Path(__file__).resolve().parents[2] / "labs"
HOUSE = Path(minserve.__file__).parent
CODE = {line for path in HOUSE.rglob("*.py") for line in path.read_text("utf-8").splitlines()}


@pytest.mark.parametrize("path", sorted(LABS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_code_that_a_chapter_shows_is_the_code_of_the_package(path: Path) -> None:
    cells = [
        cell
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    own = {line.rstrip("\n") for cell in cells for line in cell["source"]}
    for cell in cells:
        if "getsource(" not in "".join(cell["source"]):
            continue
        shown = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        stale = [line for line in shown.splitlines() if line not in CODE and line not in own]
        assert not stale, f"{cell.get('id')} shows old code: run labs/tools/store.py on the chapter"
