"""What the book is made of, each on its own: motions, fragments, records, the stripped site."""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.resources
import json
import tomllib
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from book import motion
from book.build import bytes_of, compiled_once, strip
from book.fragments import NO_SCRIPT, exercise, figure, fragment
from book.records import ROOT, Record, RecordError, cell_keys, load
from widgets import theme


def bars(title: str, **axis: object) -> go.Figure:
    made = go.Figure(go.Bar(x=[3.0, 4.0], base=[0.0, 3.0], y=["a", "a"], orientation="h"))
    made.update_xaxes(title_text=title, **axis)
    return made


def test_a_figure_over_steps_is_covered_from_the_cursor_to_its_end() -> None:
    found = motion.reveal(bars("engine step (counted)"))
    assert found.labels[-1] == "step 7" and found.labels[0] == "step 1"
    veil, cursor = found.frames[2]["layout"]["shapes"]
    assert (veil["x0"], veil["x1"], veil["fillcolor"]) == (3.0, 7.0, theme.VEIL)
    assert cursor["x0"] == cursor["x1"] == 3.0
    assert found.frames[-1] == {"layout": {"shapes": []}}


def test_its_own_shapes_stay_and_a_range_that_it_shows_is_kept() -> None:
    made = bars("time since arrival (ms, measured)", range=[0, 240])
    made.add_vline(x=1)
    found = motion.reveal(made)
    assert found.labels[-1] == "240 ms" and len(found.frames) == motion.MAX_STOPS
    assert [len(f["layout"]["shapes"]) for f in (found.frames[0], found.frames[-1])] == [3, 1]


def test_a_run_begins_at_zero_and_its_cursor_crosses_the_whole_plot() -> None:
    drawn = go.Figure(go.Scatter(x=[30.0, 60.0], y=[1, 2]))
    drawn.update_xaxes(title_text="time since arrival (ms, measured)")
    found = motion.reveal(drawn)
    assert found.labels[0] == "1 ms" and found.labels[-1] == "60 ms"
    for shape in found.frames[0]["layout"]["shapes"]:
        assert (shape["xref"], shape["yref"], shape["y0"], shape["y1"]) == ("x", "y domain", 0, 1)


def test_a_reversed_axis_is_revealed_forwards_and_no_stop_comes_twice() -> None:
    assert motion.reveal(bars("step (counted)", range=[7, 0])).labels[0] == "step 1"
    assert motion.reveal(bars("step (counted)", range=[3, 4])).labels == ["step 4"]


def test_a_logarithmic_axis_does_not_move() -> None:
    assert motion.reveal(bars("time since arrival (ms)", type="log")) == motion.Motion()


def test_states_keep_their_notes_and_begin_at_the_last() -> None:
    first, second = bars("a"), bars("b")
    second.add_annotation(text="a note")
    found = motion.states(["one", "two"], [first, second])
    assert found.start == -1 and found.labels == ["one", "two"]
    assert found.frames[1]["layout"]["annotations"][0]["text"] == "a note"


@pytest.mark.parametrize("title", ["share of memory, over all steps (%)", "rows (counted)", ""])
def test_a_figure_without_time_or_order_does_not_move(title: str) -> None:
    assert motion.reveal(bars(title)) == motion.Motion()


def test_a_sweep_is_read_point_by_point() -> None:
    made = go.Figure(go.Scatter(x=[1, 8], y=[0.5, 2.0], customdata=["2x slower", "2x faster"]))
    found = motion.along_points(made, "budget")
    assert found.labels == ["budget 1: 2x slower", "budget 8: 2x faster"]
    assert found.frames[1] == {"data": [{"x": [8], "y": [2.0]}], "traces": [1]}
    assert len(made.data) == 2


def test_the_data_of_a_figure_cannot_end_its_script() -> None:
    plot = {"data": [{"name": "</script><b>"}], "layout": {}}
    still = {"labels": [], "frames": []}
    html = figure({"plot": plot, "motion": still, "alt": 'a "bar"', "words": ""})
    data = html.partition('json">')[2].partition("</script>")[0]
    assert json.loads(data)["plot"] == plot
    assert html.count("</script>") == 1 and "a &quot;bar&quot;" in html


def test_a_cell_is_found_by_its_last_statement_whatever_stands_before_it() -> None:
    def book(*sources: str) -> object:
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A"), *cells])

    first = cell_keys(book("a = 1\nshow( a )", "show(a)", "%matplotlib x"))
    assert first == ["", "1: show(a)", "2: show(a)", "1: %matplotlib x"]
    assert cell_keys(book("b = 2\nshow(a)", "# why\nshow(a)"))[1:] == first[1:3]


def test_a_record_is_the_same_bytes_again_and_reads_back(tmp_path: Path) -> None:
    made = Record("99_made", "2026-12-01", "abc", {"1: a": [{"kind": "text", "text": "µs"}]})
    written = made.save(tmp_path).read_bytes()
    assert made.save(tmp_path).read_bytes() == written
    assert load("99_made", tmp_path) == made


def test_a_chapter_without_a_record_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"labs/99_x.ipynb.*book.record 99_x"):
        load("99_x", tmp_path)


@pytest.mark.parametrize(
    "damaged",
    [b"", b"no gzip", gzip.compress(b"{")[:-4], gzip.compress(b"{"), gzip.compress(b'{"a": 1}'),
     gzip.compress(b"\xff"), gzip.compress(b"[]")],
    ids=["empty", "text", "cut off", "half", "other fields", "bytes", "list"],
)  # fmt: skip
def test_a_damaged_record_says_how_to_make_it_again(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "99_x.json.gz").write_bytes(damaged)
    with pytest.raises(RecordError, match=r"99_x.json.gz cannot be read.*book.record 99_x"):
        load("99_x", tmp_path)


def test_a_recording_that_cannot_be_written_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Record("99_x", "2026-12-01", "abc").save(tmp_path)

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        Record("99_x", "2026-12-02", "abc").save(tmp_path)
    assert load("99_x", tmp_path).date == "2026-12-01"


def test_a_piece_of_a_kind_that_is_not_known_is_no_silent_gap() -> None:
    with pytest.raises(RecordError, match=r"99_x.*'sound'"):
        fragment({"kind": "sound"}, Record("99_x", "2026-12-01", "abc"))


def test_everything_that_the_book_needs_is_pinned_as_installed() -> None:
    pytest.importorskip("myst_nb", reason="make book installs what the book needs")
    pinned = {
        canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line and not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo, seen = list(project["optional-dependencies"]["book"]), set()
    while todo:
        wanted = Requirement(todo.pop())
        name = canonicalize_name(wanted.name)
        if name in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        found = importlib.metadata.version(name)
        assert pinned[name] == found and wanted.specifier.contains(found), name
        todo += importlib.metadata.distribution(name).requires or []
    assert {"sphinx", "furo", "sqlalchemy"} <= seen


def test_the_site_is_stripped_of_source_maps(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("run();\n//# sourceMappingURL=a.js.map\n", encoding="utf-8")
    (tmp_path / "a.css").write_text("a{}\n/*# sourceMappingURL=a.css.map */\n", encoding="utf-8")
    (tmp_path / "a.js.map").write_text("{}", encoding="utf-8")
    strip(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.js", "a.css"}
    assert bytes_of(tmp_path) == len("run();\n\n") + len("a{}\n\n")


def test_plotlys_script_gains_only_parentheses_so_that_it_is_compiled_once() -> None:
    file = importlib.resources.files("plotly") / "package_data/plotly.min.js"
    script = file.read_text(encoding="utf-8")
    made = compiled_once(script)
    start = '() => {\n"use strict";var Plotly='
    assert made.count(f"({start}") == 1 and made.endswith("})));")
    assert made.replace(f"({start}", start).removesuffix("})));") + "}));" == script


@pytest.mark.parametrize("script", ["", "var Plotly = 1;", '() => {\n"use strict";var Plotly=1'])
def test_a_script_that_is_wrapped_in_another_way_stays_as_it_is(script: str) -> None:
    assert compiled_once(script) == script


def test_a_figure_says_what_it_needs_where_scripts_are_off() -> None:
    still = {"labels": [], "frames": []}
    html = figure({"plot": {"data": [], "layout": {}}, "motion": still, "alt": "a", "words": ""})
    assert NO_SCRIPT in html


@pytest.mark.parametrize(
    ("title", "shown"), [("Which goes next?", "Which goes next?</b>"), ("A sum", "A sum.</b>")]
)
def test_an_exercise_title_ends_in_one_mark(title: str, shown: str) -> None:
    piece = {"name": "x", "title": title, "task": "t", "function": "f", "hints": ["a", "b", "c"]}
    assert shown in exercise(piece, solutions=False)
