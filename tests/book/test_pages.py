"""Every chapter as a page of the book: nothing blank, nothing lost, no answer outside a fold."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest

from book import records
from book.pages import IN_THE_BOOK, missing, page
from widgets.scoring import questions

CHAPTERS = records.chapters()
MOST_RECORDED_BYTES = 3_000_000


class Text(HTMLParser):
    """What stands on a page outside folds, and inside them."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.folded = "", ""
        self.figures: list[str] = []
        self._folds, self._skips = 0, 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._folds += tag == "details"
        self._skips += tag == "script"
        if tag == "figure":
            self.figures.append(dict(attrs).get("data-name") or "")

    def handle_endtag(self, tag: str) -> None:
        self._folds -= tag == "details"
        self._skips -= tag == "script"

    def handle_data(self, data: str) -> None:
        if self._skips:
            return
        if self._folds:
            self.folded += data
        else:
            self.open += data


@cache
def chapter(path: Path) -> tuple[Any, records.Record, Any]:
    """The notebook, what was recorded of it, and its page."""
    notebook, record = nbformat.read(path, as_version=4), records.load(path.stem)
    return notebook, record, page(notebook, record)


@cache
def text(path: Path) -> Text:
    """Of what stands among the outputs; the prose is the author's."""
    return shown_by(chapter(path)[2])


def shown_by(made: Any) -> Text:
    found = Text()
    for cell in made.cells:
        for output in cell.get("outputs", ()):
            found.feed(output.get("data", {}).get("text/html", ""))
    return found


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def figures(record: records.Record) -> list[records.Piece]:
    pieces = [piece for each in record.cells.values() for piece in each]
    return [piece for piece in [*pieces, *record.named.values()] if piece["kind"] == "figure"]


def moves(piece: records.Piece) -> bool:
    """Whether its slider changes what is drawn."""
    frames = [frame for frame in piece["motion"]["frames"] if frame]
    return len(frames) > 2 and any(frame != frames[0] for frame in frames)


def test_everything_that_the_chapter_shows_was_recorded(path: Path) -> None:
    notebook, record, _ = chapter(path)
    left = missing(notebook, record)
    assert not left, f"record it again: .venv/bin/python -m book.record {path.stem}"


def test_every_signature_figure_stands_on_the_page_once(path: Path) -> None:
    notebook, record, _ = chapter(path)
    declared = notebook.metadata.get("minserve", {}).get("figures", {})
    assert declared.keys() == record.named.keys()
    for name in declared:
        assert text(path).figures.count(name) == 1, name


def test_a_signature_figure_moves(path: Path) -> None:
    assert any(moves(piece) for piece in chapter(path)[1].named.values())


def test_no_figure_is_blank_and_every_frame_fits_its_plot(path: Path) -> None:
    for piece in figures(chapter(path)[1]):
        plot, motion = piece["plot"], piece["motion"]
        assert piece["alt"] and "class" in piece["words"]
        assert any(_points(trace) for trace in _at_first(piece)), piece["alt"]
        assert len(motion["labels"]) == len(motion["frames"])
        for frame in motion["frames"]:
            traces = frame.get("traces", [])
            assert len(traces) in (0, len(frame.get("data", [])))
            assert all(place < len(plot["data"]) for place in traces)


def _at_first(piece: records.Piece) -> list[dict[str, Any]]:
    """The traces of the frame that is shown first; an empty frame is the one before it again."""
    frames, traces = piece["motion"]["frames"], piece["plot"]["data"]
    if not frames:
        return traces
    start = piece["motion"]["start"] % len(frames)
    frame = next(each for each in frames[start::-1] if each)
    if "traces" not in frame:
        return frame.get("data", traces)
    changed = dict(zip(frame["traces"], frame["data"], strict=True))
    return [trace | changed.get(place, {}) for place, trace in enumerate(traces)]


def _points(trace: dict[str, Any]) -> bool:
    """True for a trace with something to draw."""
    values = trace.get("x", trace.get("y", ()))
    return isinstance(values, dict) or any(value is not None for value in values)


def test_all_code_and_prose_of_the_chapter_is_there(path: Path) -> None:
    notebook, _, made = chapter(path)
    code = [cell.source for cell in made.cells if cell.cell_type == "code" and cell.source]
    wanted = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert code == [source for source in wanted if "raise_panel_errors" not in source]
    prose = "".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    written = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    # Terms are linked there; and the playground is no page: it is named, and not linked.
    prose = re.sub(r"\{term\}`([^<`]+) <[^>]+>`", r"\1", prose)
    written = written.replace("[02 playground](02_playground.ipynb)", "02 playground (in the lab)")
    # The first paragraph tells a reader of the lab to run all cells; the book's has no such menu.
    assert "Run All Cells" in written and "Run All Cells" not in prose
    assert prose.count(IN_THE_BOOK) == 1
    written = re.sub(
        r"\*\*(To begin|How to use a chapter)\*\* .*?(\n\n|\Z)", "", written, flags=re.S
    )
    lines = [line for line in written.splitlines() if line and "<img" not in line]
    assert [line for line in lines if line not in prose] == []


def test_code_is_folded_where_the_lab_folds_it(path: Path) -> None:
    notebook, _, made = chapter(path)
    hidden = {
        c.source for c in notebook.cells if c.metadata.get("jupyter", {}).get("source_hidden")
    }
    for cell in made.cells:
        if cell.cell_type == "code" and cell.source:
            assert ("hide-input" in cell.metadata["tags"]) == (cell.source in hidden)


def test_every_question_is_asked_openly_and_answered_in_a_fold(path: Path) -> None:
    asked, found = questions.load(path.stem.partition("_")[0]), text(path)
    recorded = chapter(path)[1].answers
    for prediction in asked.predict.values():
        for question in prediction.questions:
            assert question.text in found.open
            said = recorded[prediction.key][question.metric]
            assert said in found.folded and said not in found.open
            for reason in question.reasons:
                assert reason.text in found.open and reason.feedback in found.folded
    for quantity in asked.estimate.values():
        assert recorded[quantity.key]["text"] in found.open
        assert quantity.explain in found.folded and quantity.explain not in found.open
    for choice in asked.recap.questions:
        assert choice.text in found.open
        for answer in choice.answers:
            assert answer.text in found.open and answer.feedback in found.folded
            assert answer.feedback not in found.open
    assert asked.recap.ledger.wins in found.folded


def test_exercises_have_hints_and_a_solution_that_can_be_left_out(path: Path) -> None:
    notebook, record, _ = chapter(path)
    exercises = [p for each in record.cells.values() for p in each if p["kind"] == "exercise"]
    for piece in exercises:
        source = (records.LABS / "solutions" / f"{piece['name']}.py").read_text(encoding="utf-8")
        for solutions in (True, False):
            shown = shown_by(page(notebook, record, solutions=solutions))
            assert (source in shown.folded) == solutions and source not in shown.open
            assert all(hint in shown.folded for hint in piece["hints"])


def test_links_lead_somewhere_and_no_image_is_left(path: Path) -> None:
    made = chapter(path)[2]
    prose = "\n".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if not target.startswith("https://"):
            assert (records.LABS / target.partition("#")[0]).is_file(), target
    assert "labs/figures" not in prose and "<img" not in prose


def test_the_records_are_small() -> None:
    assert sum(each.stat().st_size for each in records.RECORDED.iterdir()) < MOST_RECORDED_BYTES
    assert {each.name.partition(".")[0] for each in records.RECORDED.iterdir()} == {
        each.stem for each in CHAPTERS
    }


def test_a_notebook_that_is_no_page_is_named_without_a_link():
    cells = chapter(CHAPTERS[0])[2].cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "02 playground (in the lab)" in prose and "02_playground.ipynb" not in prose
    assert "(45a_continuous_batching.ipynb)" in prose
