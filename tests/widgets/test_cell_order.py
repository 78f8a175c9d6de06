"""A cell that runs too early says which cell comes first."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.labs.lint import LABS
from widgets.notebooks.cell_order import advice, install, made, notebook_path

CELLS = [
    ("markdown", "# 45b · Chunked prefill\n\ntext"),
    ("code", "import random\n\nWHOLE = 1"),
    ("markdown", "## 3 · Predict\n\nmore"),
    (
        "code",
        "%matplotlib inline\ncompare = Compare(WHOLE)\nwith turn() as run: first, *rest = run",
    ),
    ("code", "this does not compile"),
]


@pytest.fixture
def notebook(tmp_path):
    path = tmp_path / "45b.ipynb"
    cells = [{"cell_type": kind, "source": source.splitlines(True)} for kind, source in CELLS]
    path.write_text(json.dumps({"cells": cells}))
    return path


def missing(name):
    return NameError(f"name {name!r} is not defined", name=name)


@pytest.mark.parametrize("name", ["compare", "run", "first", "rest"])
def test_the_cell_that_makes_the_name_is_told_with_its_heading(name, notebook):
    text = advice(missing(name), notebook)
    assert text.startswith(f"`{name}` is made by the cell under “3 · Predict” that begins with")
    assert "%matplotlib inline" in text and "Run All Above" in text


def test_a_name_that_no_cell_makes_is_left_to_python(notebook):
    assert advice(missing("compair"), notebook) == ""
    assert advice(UnboundLocalError("x", name="compare"), notebook) == ""


def test_without_the_notebooks_file_all_cells_above_are_asked_for(tmp_path):
    assert "Run All Above" in advice(missing("compare"), None)
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{")
    assert "Run All Above" in advice(missing("compare"), broken)


def test_names_of_an_inner_scope_are_not_the_cells():
    source = "def f(a):\n    inner = 1\nrows = [each for each in range(3)]\nkey = lambda arg: arg"
    assert made(source) == {"f", "rows", "key"}
    assert made("import a.b, c as d\nfrom e import f as g\nfor i in (j := [1]):\n    k = i") == {
        "a", "d", "g", "i", "j", "k",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("x?\ny = 1", {"y"}),
        ("y = !ls\nz = 1", {"y", "z"}),
        ("x = (a\n % b)", {"x"}),
        ("%%time\nx = 1", {"x"}),
        ("%%bash\nx=1", set()),
        ("match a:\n    case {'k': b, **c}: pass\n    case [d, *e]: pass", {"b", "c", "d", "e"}),
        ("x = " + "1+" * 20_000 + "1", set()),
        ("x = " + "-" * 200_000 + "1", set()),
    ],
)
def test_cells_are_read_as_the_notebook_reads_them(source, names):
    assert made(source) == names


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"null",
        b'{"cells": [1]}',
        b'{"cells": [{"cell_type": "code", "source": 5}]}',
    ],
)
def test_a_damaged_notebook_asks_for_all_cells_above(tmp_path, content):
    (tmp_path / "x.ipynb").write_bytes(content)
    assert "Run All Above" in advice(missing("compare"), tmp_path / "x.ipynb")


@pytest.mark.parametrize("name", [5, [1], None, ""])
def test_a_name_that_is_none_is_left_to_python(notebook, name):
    error = missing("x")
    error.name = name
    assert advice(error, notebook) == ""


def test_a_subclass_that_cannot_say_its_name_is_left_to_python(notebook):
    class OddError(NameError):
        @property
        def name(self):
            raise RuntimeError("no name")

    assert advice(OddError("x"), notebook) == ""


def test_a_session_whose_name_is_no_file_has_none(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "a" * 5000 + ".ipynb")
    assert notebook_path(SimpleNamespace(user_ns={})) is None


def test_the_heading_is_the_last_above_the_cell(tmp_path, monkeypatch):
    cells = [("markdown", "# One\n\n## Two"), ("markdown", "no heading"), ("code", "x = 1")]
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": k, "source": s} for k, s in cells]}))
    assert "under “Two” that begins with `x = 1`" in advice(missing("x"), path)
    monkeypatch.setattr("widgets.notebooks.cell_order._MOST_BYTES", 10)
    assert advice(missing("x"), path).startswith("Run the cells above first")


def test_in_a_shell_the_sentence_follows_the_error(notebook, monkeypatch, capsys):
    monkeypatch.setenv("JPY_SESSION_NAME", str(notebook))
    shell = InteractiveShell()
    install(shell)
    result = shell.run_cell("compare.run()")
    assert isinstance(result.error_in_exec, NameError)
    out = capsys.readouterr().out
    assert "NameError" in out and "made by the cell under “3 · Predict”" in out
    shell.run_cell("1 / 0")
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out and "made by" not in out


def test_another_handler_stays(notebook):
    shell = InteractiveShell()
    shell.set_custom_exc((ValueError,), lambda *given, **named: None)
    install(shell)
    assert shell.custom_exceptions == (ValueError,)


def test_the_front_end_says_which_notebook_runs(notebook, monkeypatch):
    shell = SimpleNamespace(user_ns={"__vsc_ipynb_file__": str(notebook)})
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert notebook_path(shell) == notebook
    monkeypatch.setenv("JPY_SESSION_NAME", f"work/{notebook.name}")
    monkeypatch.chdir(notebook.parent)
    assert notebook_path(shell) == notebook.parent / notebook.name
    shell.user_ns.clear()
    monkeypatch.setenv("JPY_SESSION_NAME", "console-1")
    assert notebook_path(shell) is None


@pytest.mark.parametrize("path", sorted(LABS.glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_every_cell_of_a_chapter_finds_the_cell_that_its_names_come_from(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    known = set(dir(__builtins__)) | set(__builtins__ if isinstance(__builtins__, dict) else ())
    names = {
        name
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
        for name in made("".join(cell["source"]))
    } - known
    assert len(names) > 4
    for name in names:
        assert "is made by the cell" in advice(missing(name), path), name


def test_a_fresh_kernel_of_the_lab_explains_its_first_cell(notebook):
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from nbformat import v4

    from widgets.panels.exercises.exercise import load_module

    open_lab = load_module(LABS / "open_lab.py")
    cells = [v4.new_code_cell("compare.run()")]
    client = NotebookClient(v4.new_notebook(cells=cells), allow_errors=False)
    environment = open_lab.kernel_environment() | {"JPY_SESSION_NAME": str(notebook)}
    with pytest.raises(CellExecutionError), client.setup_kernel(env=environment):
        client.execute_cell(client.nb.cells[0], 0)
    (text,) = [out["data"]["text/plain"] for out in cells[0].outputs if "data" in out]
    assert "made by the cell under “3 · Predict”" in text
