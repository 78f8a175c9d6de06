"""A chapter run headless, cell by cell, as a reader's kernel would, and all its panels looked at.

`python -m labs.running labs/44_prefix_reuse.ipynb` (from `tests/`) prints, as JSON, which rules of
`labs.rules` the chapter breaks. A process of its own, so that a chapter leaves nothing behind.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
_T = TypeVar("_T")
_LIMIT_S = 300.0


@dataclass
class ChapterRun:
    """What a chapter was after its last cell."""

    name: str
    """ "44_prefix_reuse"."""
    names: dict[str, Any] = field(default_factory=dict)
    """The notebook's namespace."""
    outputs: list[str] = field(default_factory=list)
    """What each code cell printed and displayed, as text."""
    objects: list[Any] = field(default_factory=list)
    """Every panel and every figure that was made."""

    def of(self, kind: type[_T]) -> list[_T]:
        """The panels or figures of one kind, in the order in which they were made."""
        return [each for each in self.objects if isinstance(each, kind)]


Rule = Callable[[ChapterRun], Iterator[str]]


def run_chapter(path: Path) -> ChapterRun:
    """Run all code cells in this process. Raises what a cell raises."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    notebook = json.loads(path.read_text(encoding="utf-8"))
    shell = InteractiveShell.instance()
    run = ChapterRun(path.stem, shell.user_ns)
    made: list[Any] = []
    _watch(made)
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        with capture_output() as said:
            result = shell.run_cell("".join(cell["source"]), store_history=True)
        result.raise_error()
        shown = [str(each.data.get("text/plain", "")) for each in said.outputs]
        run.outputs.append("\n".join([said.stdout, *shown, said.stderr]))
    run.objects = made
    return run


def _watch(made: list[Any]) -> None:
    """Note every panel and figure from here on, whether or not it gets a name."""
    from widgets.figures.lab_figure import LabFigure
    from widgets.panels import views

    for base in (views.Displayed, LabFigure):
        for kind in {base, *_subclasses(base)}:
            if "__init__" in vars(kind):
                _note(kind, made)


def _subclasses(base: type) -> Iterator[type]:
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)


def _note(kind: type, made: list[Any]) -> None:
    init = kind.__init__  # type: ignore[misc]

    def noted(self: Any, *args: Any, **options: Any) -> None:
        if not any(each is self for each in made[-50:]):
            made.append(self)
        init(self, *args, **options)

    kind.__init__ = noted  # type: ignore[misc]


def broken_rules(path: Path) -> dict[str, list[str]]:
    """Rule -> what the chapter breaks of it, found in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "labs.running", str(path)],
        cwd=ROOT / "tests",
        env=os.environ
        | {"MINSERVE_HEADLESS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        capture_output=True, text=True, timeout=_LIMIT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        return {"runs to its end": [done.stderr[-3000:]]}
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(path: str) -> None:
    """Run the chapter at `path` and print what it breaks."""
    from labs.rules import rules_for

    run = run_chapter(Path(path))
    gc.collect()
    broken = {rule.__name__: list(rule(run)) for rule in rules_for(run.name)}
    sys.stdout.write(
        "\n" + json.dumps({name: said for name, said in broken.items() if said}) + "\n"
    )


if __name__ == "__main__":
    main(sys.argv[1])
