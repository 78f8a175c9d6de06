"""Pieces of a record as HTML: which answer is marked right, what a slider moves through."""

from __future__ import annotations

from html import escape
from pathlib import Path

import nbformat
import pytest

from book import records
from book.fragments import figure, fragment, question
from book.pages import page
from book.records import Record
from widgets.scoring import questions

CHAPTERS = records.chapters()
EMPTY = Record("99_x", "2026-12-01", "abc")


def asked(path: Path) -> questions.Chapter:
    return questions.load(path.stem.partition("_")[0])


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_right_answer_is_marked_as_right_and_comes_first(path: Path) -> None:
    found = asked(path)
    answers = records.load(path.stem).answers
    kinds = [("predict", each) for each in found.predict.values()]
    for kind, each in [*kinds, ("recap", found.recap)]:
        html = question({"kind": kind, "key": each.key}, answers)
        given = [
            option
            for one in each.questions
            for option in (one.reasons if kind == "predict" else one.answers)
        ]
        for option in given:
            mark = ("right", "Right") if option.correct else ("wrong", "Not so")
            assert f'<li class="{mark[0]}"><b>{mark[1]}:</b> {escape(option.text)} <i>' in html
        for part in html.split("<ul>")[1:]:
            assert part.startswith('<li class="right">')


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_an_estimate_tells_its_choices_their_unit_and_in_a_fold_its_value(path: Path) -> None:
    answers = records.load(path.stem).answers
    for quantity in asked(path).estimate.values():
        html = question({"kind": "estimate", "key": quantity.key}, answers)
        before, _, fold = html.partition("<details")
        assert f"It is {escape(answers[quantity.key]['value'])}." in fold
        if quantity.choices:
            last = f"{quantity.choices[-1]:,g}"
            unit = f" {quantity.unit}" if quantity.unit else ""
            assert f"{last}{unit}.</p>" in before


def moving(count: int, start: int = -1) -> str:
    labels = [f"at {n}" for n in range(count)]
    motion = {"labels": labels, "frames": [{}] * count, "start": start}
    plot = {"data": [], "layout": {}}
    return figure({"plot": plot, "motion": motion, "alt": "a", "words": ""})


def test_a_slider_goes_through_all_frames_and_begins_where_the_figure_does() -> None:
    assert 'min="0" max="2" value="2"' in moving(3) and "<output>at 2</output>" in moving(3)
    assert 'min="0" max="2" value="0"' in moving(3, start=0)
    assert 'aria-valuetext="at 1"' in moving(2)
    assert "<input" not in moving(1) and "<input" not in moving(0)


def test_a_panel_leaves_its_style_to_the_site() -> None:
    piece = {"kind": "panel", "title": "A", "html": "<style>\np {}</style><p>words</p>"}
    html = fragment(piece, EMPTY)
    assert "<style" not in html and "<p>words</p>" in html


def test_a_cell_that_was_not_recorded_keeps_its_printed_words() -> None:
    cell = nbformat.v4.new_code_cell("print(1)")
    printed = {"output_type": "stream", "name": "stdout", "text": "one"}
    cell.outputs = [nbformat.from_dict(printed)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=metadata)
    (made,) = page(notebook, EMPTY).cells
    assert [output.text for output in made.outputs] == ["one"]
