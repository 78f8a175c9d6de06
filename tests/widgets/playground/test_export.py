"""The files parse, agree with the result, and restore the comparison."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
from dataclasses import replace

import pytest

from tests.widgets.playground.small import FOUR, HERE
from widgets.figures import render
from widgets.metrics import METRICS
from widgets.playground import Playground
from widgets.playground.export import COLUMNS, Exports, figure_of, picture_of


@pytest.fixture
def play(headless):
    made = Playground()
    made.state.change(lambda setup: FOUR)
    made.run()
    return made


def test_json_holds_code_command_counts_values_and_verdicts(play, tmp_path):
    data = json.loads(play.save(tmp_path / "a.json").read_text(encoding="utf-8"))
    assert data["code"] == play.code and data["command"] == play.command_line
    assert list(data["sides"]) == ["base", "static", "one by one", "radix"]
    for name, runs in play.result.runs.items():
        side = data["sides"][name]
        assert side["values"]["ttft_p50_s"] == [METRICS["ttft_p50_s"].read(runs[0].trace)]
        assert side["counted"]["steps"] == runs[0].trace.totals.steps
        assert side["settled"] == list(play.setup.resolved(name).notes)
    assert data["verdicts"]["one by one"]["steps"]["outcome"] == "worse"
    assert Playground(data["code"]).setup == play.setup


def test_csv_has_a_row_for_every_side_quantity_and_round(headless, tmp_path):
    play = Playground()
    play.state.change(lambda setup: HERE)
    play.run()
    text = play.save(tmp_path / "a.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS
    steps = [row for row in rows if row["quantity"] == "steps"]
    assert [(row["side"], row["round"]) for row in steps] == [
        (side, f"{n}") for side in ("base", "static") for n in (1, 2, 3)
    ]
    assert {row["found by"] for row in steps} == {"counted"}
    found = {row["found by"] for row in rows if row["quantity"] == "duration_s"}
    assert found == {"measured"}
    for row in steps:
        run = play.result.runs[row["side"]][int(row["round"]) - 1]
        assert float(row["value"]) == run.trace.totals.steps


def test_the_links_in_the_panel_are_the_same_files(play, tmp_path):
    links = dict(re.findall(r'download="playground\.(\w+)" href="data:[^,]*,([^"]*)"',
                            play.view.exports.links.value))  # fmt: skip
    assert set(links) == {"json", "csv"}
    for kind, data in links.items():
        path = play.save(tmp_path / f"a.{kind}")
        assert base64.b64decode(data) == path.read_bytes()


def test_a_picture_is_made_by_kaleido_or_the_sentence_says_what_to_do(play, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "_image", lambda *given, **options: b"\x89PNG\r\n\x1a\n...")
    assert play.save(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    def missing(*given, **options):
        raise RuntimeError(render._NO_KALEIDO.format(problem="There is no kaleido"))

    monkeypatch.setattr(render, "_image", missing)
    with pytest.raises(RuntimeError, match=r"pip install kaleido.*press “PNG” in the panel"):
        play.save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"ends in \.json, \.csv or \.png"):
        play.save(tmp_path / "c.xlsx")


def test_names_of_sides_are_text_in_every_file(headless, tmp_path):
    play = Playground()
    name = 'a "b", <b>c</b>'
    play.state.change(lambda setup: replace(FOUR, base_name=name))
    play.run()
    rows = list(csv.DictReader(io.StringIO(play.save(tmp_path / "a.csv").read_text())))
    assert rows[0]["side"] == name
    assert name in json.loads(play.save(tmp_path / "a.json").read_text())["sides"]
    shown = play.view.verdicts.value + play.editor.settled.value + play.view.counted.value
    assert "<b>c</b>" not in shown and "&lt;b&gt;c" in shown


def test_a_picture_says_what_it_shows_and_where_it_comes_from(play, monkeypatch):
    figure = picture_of(play.result)
    drawn = figure_of(play.result)
    texts = [each.text.replace("<br>", " ") for each in figure.figure.layout.annotations]
    title, source = texts[-2:]
    assert title.startswith("Time to first token (TTFT), median: base, static, one by one, radix; ")
    assert "6 requests" in title and source == html.escape(drawn.caption)
    assert "Modelled for H100 SXM" in source and "minserve" in source
    grown = figure.figure.layout.height - drawn.figure.layout.height
    margins = [each.figure.layout.margin for each in (figure, drawn)]
    assert grown == sum(m.t + m.b for m in margins[:1]) - margins[1].t - margins[1].b > 0, (
        "the strips are as large as in the page"
    )


def test_the_button_of_the_page_has_the_words_of_what_is_shown(play, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "0")
    exports = Exports()
    exports.picture("a title", "a source")
    exports.picture("another", "its source")
    _, button = exports.widget.children
    assert (button.heading, button.source) == ("another", "its source")
    seen = []
    monkeypatch.setattr(play.view.exports, "picture", lambda *words: seen.append(words))
    play.view.shown.value = play.view.shown.options[2]
    (title, source), = seen  # fmt: skip
    assert "base, one by one; " in title and "radix" not in title + source
