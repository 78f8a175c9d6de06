"""Stored chapters keep the rules, and every rule can go red."""

from __future__ import annotations

import copy
import json
import re
import runpy
from pathlib import Path

import nbformat
import pytest

from labs import lint

START = lint.LABS / "00_start_here.ipynb"


@pytest.mark.parametrize(
    ("path", "rule"),
    [(path, rule) for path in lint.notebooks() for rule in lint.rules_for(path)],
    ids=lambda each: each.stem if isinstance(each, Path) else each.__name__,
)
def test_a_stored_notebook(path, rule):
    assert list(rule(lint.read(path), path)) == []


def _break(notebook, rule):
    """The smallest change that a rule must notice."""
    cells = notebook["cells"]
    code = lint.code_cells(notebook)
    facts = next(cell for cell in code if "nbval-check-output" in lint.tags(cell))
    prose = next(cell for cell in cells[1:] if cell["cell_type"] == "markdown")
    if rule is lint.has_a_header:
        cells[0]["source"] = ["# 00 · Start here\n"]
    elif rule is lint.is_short:
        prose["source"] = ["word " * 200]
    elif rule is lint.is_executed:
        facts["execution_count"] = None
    elif rule is lint.has_compared_facts:
        facts["outputs"] = []
    elif rule is lint.carries_no_state:
        facts["outputs"][0]["text"] = ["/home/somebody/minserve\n"]
    elif rule is lint.raises_panel_errors_last:
        cells.pop()
    elif rule is lint.imports_the_lab_only:
        code[0]["source"] = ["from tests.labs import lint\n"]
    elif rule is lint.has_its_figures:
        notebook["metadata"]["minserve"]["figures"]["00_missing"] = "None"
    elif rule is lint.types_no_measurement:
        prose["source"] = ["It is 12.3x as fast."]
    elif rule is lint.gives_no_answer_away:
        code[0]["source"] = ['Reason("Fewer steps.", "Yes.", True)\n']
    elif rule is lint.folds_plumbing:
        code[0]["source"] = ["x = 1\n"] * (lint.MAX_SHOWN_LINES + 1)


@pytest.mark.parametrize("rule", lint.RULES, ids=lambda rule: rule.__name__)
def test_every_rule_can_go_red(rule, tmp_path):
    notebook = copy.deepcopy(lint.read(START))
    _break(notebook, rule)
    path = tmp_path / START.name
    text = json.dumps(notebook)
    if rule is lint.is_small:
        text += " " * lint.MAX_BYTES
    path.write_text(text)
    assert list(rule(notebook, path))


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("Answer('a', 'b')", True),
        ("q = Choice (1)", False),
        ("Estimate('45b.ridge', truth, explain = 'Bytes over bandwidth.')", True),
        ("names=('first come', 'feedback')", False),
        ("def explain(result):\n    return result", False),
        ("assert correct == 3", False),
        ("Recap('45b')", False),
        ("\n".join(["x = 1"] * 9 + ["guess = Estimate('45b.ridge', globals())"]), True),
    ],
)
def test_answers_in_the_source_are_found_and_other_words_are_not(code, bad):
    notebook = copy.deepcopy(lint.read(START))
    lint.code_cells(notebook)[0]["source"] = [code]
    assert bool(list(lint.gives_no_answer_away(notebook, START))) is bad


def test_code_between_two_actions_is_counted():
    notebook = copy.deepcopy(lint.read(START))
    for cell in notebook["cells"]:
        cell["metadata"].pop("tags", None)
    assert any("code cells" in text for text in lint.is_short(notebook, START))


def test_the_map_marks_as_planned_what_is_not_there():
    text = "\n".join(lint.source(cell) for cell in lint.read(START)["cells"])
    there = {path.name.split("_")[0] for path in lint.notebooks()}
    rows = re.findall(r"^\|[^|]*\|[^|]*\| ([^|]*) \|$", text, flags=re.MULTILINE)[2:]
    assert len(rows) >= 8
    for row in rows:
        for number in re.findall(r"\b(\d\d[a-c]?)\b", row):
            assert ("(planned)" in row) != any(name.startswith(number) for name in there), row
        for link in re.findall(r"\]\(([^)]+)\)", row):
            assert (lint.LABS / link).is_file(), link


def test_a_slip_in_a_tag_is_noticed():
    notebook = copy.deepcopy(lint.read(START))
    for tag, kept in (("workload", True), ("nbval-check-outptu", False), ("acton", False)):
        notebook["cells"][1]["metadata"]["tags"] = [tag]
        assert (list(lint.has_compared_facts(notebook, START)) == []) is kept, tag


def test_pictures_folded_away_do_not_spoil_the_guess():
    for path in lint.notebooks():
        for cell in lint.read(path)["cells"]:
            text = lint.source(cell)
            if "<img" in text:
                assert text.index("<details>") < text.index("<img"), Path(path).name


def test_storing_a_chapter_folds_what_the_rule_wants_folded():
    long = "x = 1\n" * (lint.MAX_SHOWN_LINES + 1)
    cells = [
        nbformat.v4.new_code_cell(long),
        nbformat.v4.new_code_cell(long, metadata={"tags": ["shown"]}),
        nbformat.v4.new_code_cell(long.removesuffix("x = 1\n")),
        nbformat.v4.new_code_cell("answer = 3", metadata={"jupyter": {"source_hidden": True}}),
        nbformat.v4.new_markdown_cell(long),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    assert len(list(lint.folds_plumbing(notebook, START))) == 1
    store = runpy.run_path(str(lint.LABS / "tools" / "store.py"))
    tidied = store["tidied"](notebook)
    assert [lint.is_folded(cell) for cell in tidied.cells] == [True, False, False, True, False]
    assert list(lint.folds_plumbing(tidied, START)) == []
    tidied.cells[1].metadata["jupyter"] = {"source_hidden": True}
    assert len(list(lint.folds_plumbing(tidied, START))) == 1


PLAYGROUND = lint.LABS / f"{lint.PLAYGROUND}.ipynb"


@pytest.mark.parametrize("rule", lint.rules_for(PLAYGROUND), ids=lambda rule: rule.__name__)
def test_every_rule_of_the_playground_can_go_red(rule, tmp_path):
    notebook = copy.deepcopy(lint.read(PLAYGROUND))
    _break(notebook, rule)
    if rule is lint.opens_plainly:
        notebook["cells"][0]["source"] = ["# 02 · The playground\n\nIt is here. Have a look."]
    path = tmp_path / PLAYGROUND.name
    text = json.dumps(notebook)
    if rule is lint.is_small:
        text += " " * lint.MAX_BYTES
    path.write_text(text)
    assert list(rule(notebook, path))


def test_the_playground_alone_is_excused_from_what_a_lesson_has():
    assert PLAYGROUND.is_file() and PLAYGROUND not in lint.chapters()
    assert set(lint.notebooks()) - set(lint.chapters()) == {PLAYGROUND}
    for path in lint.chapters():
        assert lint.rules_for(path) == lint.RULES
    assert set(lint.RULES) - set(lint.rules_for(PLAYGROUND)) == set(lint.OF_A_LESSON)
