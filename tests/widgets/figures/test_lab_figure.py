from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from minserve.trace import RunTrace, TraceHeader
from tests.widgets.figures import runs
from widgets import figures, provenance, theme
from widgets.figures import LabFigure, render
from widgets.figures.export import export_svg
from widgets.provenance import Provenance

ONE_RUN = {
    "timeline": figures.timeline,
    "slots": figures.slots,
    "page_map": figures.page_map,
    "kv_bytes": figures.kv_bytes,
    "latency": figures.latency,
    "throughput": figures.throughput,
    "recompute_triangle": figures.recompute_triangle,
    "typewriters": figures.typewriters,
    "stage_shares": figures.stage_shares,
    "completions": figures.completions,
}


@pytest.mark.parametrize("name", ONE_RUN)
def test_every_figure_carries_its_words(name: str, plain: RunTrace) -> None:
    drawn = ONE_RUN[name](plain)
    assert isinstance(drawn.figure, go.Figure)
    assert "Modelled for a virtual device, 2026-11-21" in drawn.caption
    assert "seed 0" in drawn.caption and "echo" in drawn.caption
    assert re.search(r"\d", drawn.takeaway) and drawn.takeaway.endswith(".")
    assert re.search(r"\d", drawn.alt) and drawn.alt.endswith(".")
    assert drawn.table and all(isinstance(row, dict) for row in drawn.table)
    assert drawn.figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"
    page = drawn.html(include_plotlyjs=False)
    assert 'role="img"' in page and "<details>" in page and "<table>" in page
    assert json.dumps(drawn._repr_mimebundle_())


@pytest.mark.parametrize("name", sorted(set(ONE_RUN) - {"page_map"}))
def test_figures_take_named_runs_in_order(name: str, off: RunTrace, on: RunTrace) -> None:
    drawn = ONE_RUN[name]({"off": off, "on": on})
    assert {row["side"] for row in drawn.table} == {"off", "on"}
    assert "memory.kv_cache=False" in drawn.caption and "memory.kv_cache=True" in drawn.caption


@pytest.mark.parametrize("name", sorted(ONE_RUN))
def test_figures_refuse_what_is_no_run(name: str) -> None:
    with pytest.raises(TypeError, match=r"expected a RunTrace.*not int"):
        ONE_RUN[name](3)


def shown(monkeypatch: pytest.MonkeyPatch, figure: LabFigure) -> list[dict[str, Any]]:
    bundles: list[dict[str, Any]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: bundles.append(data))
    figure.show()
    return bundles


def test_display_is_a_small_plot_then_the_words(
    plain: RunTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = figures.timeline(plain)
    plot, words = shown(monkeypatch, drawn)
    assert render.MIME in plot
    assert len(json.dumps(plot)) < 200_000, "plotly.js itself must not be in a notebook"
    assert drawn.takeaway in words["text/html"] and words["text/plain"] == drawn.text


def test_colab_gets_html_with_the_plot_in_it(
    plain: RunTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", None)
    bundle = figures.kv_bytes(plain)._repr_mimebundle_()
    assert render.MIME not in bundle and "Plotly.newPlot" in bundle["text/html"]


def test_headless_shows_words_only(plain: RunTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    drawn = figures.timeline(plain)
    assert shown(monkeypatch, drawn) == [{"text/plain": drawn.text}]
    assert drawn._repr_mimebundle_() == {"text/plain": drawn.text}


def test_words_are_escaped_and_tables_cut() -> None:
    rows = [{"n": n, "what": "<b>"} for n in range(100)]
    text = render.words_html("a < b", "c & d", "e", rows)
    assert "a &lt; b" in text and "c &amp; d" in text and "&lt;b&gt;" in text
    assert text.count("<tr>") == render.MAX_TABLE_ROWS + 1
    assert "40 more rows" in text
    assert LabFigure(go.Figure(), "", "", "", rows).table[99]["n"] == 99


def test_exported_svg_carries_words_and_suits_dark_pages() -> None:
    plain_svg = (
        '<svg class="main-svg" xmlns="http://www.w3.org/2000/svg" width="760" height="300" '
        'style="" viewBox="0 0 760 300"><rect/></svg>'
    )
    text = render._with_words(plain_svg, "It is 3 < 4.", "Measured here. " * 20, "A rectangle.")
    assert '<title id="lab-alt">A rectangle.</title>' in text
    assert "It is 3 &lt; 4." in text and "prefers-color-scheme: dark" in text
    height = float(re.search(r'viewBox="0 0 760 ([\d.]+)"', text)[1])  # type: ignore[index]
    last = max(float(y) for y in re.findall(r'y="([\d.]+)" font-size', text))
    assert 300 < last < height
    assert text.count("<svg") == text.count("</svg>") == 1


def test_a_missing_browser_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> bytes:
        raise RuntimeError("Kaleido requires Google Chrome to be installed.\n\nlong story")

    monkeypatch.setattr(go.Figure, "to_image", broken)
    with pytest.raises(RuntimeError, match=r"Google Chrome.*pip install kaleido"):
        LabFigure(go.Figure(), "", "", "").svg()


def test_export_refuses_names_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="figure name"):
        export_svg({"../outside": LabFigure(go.Figure(), "", "", "")}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_export_writes_one_file_a_figure(plain: RunTrace, tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    if not any(map(shutil.which, ("chromium", "google-chrome", "chrome"))):
        pytest.skip("no Chrome or Chromium")
    drawn = {"00_timeline": figures.timeline(plain), "00_kv": figures.kv_bytes(plain)}
    paths = export_svg(drawn, tmp_path / "figures")
    assert [path.name for path in paths] == ["00_timeline.svg", "00_kv.svg"]
    for path, figure in zip(paths, drawn.values(), strict=True):
        text = path.read_text()
        assert text.startswith("<svg") and figure.takeaway[:20] in text


def test_provenance_names_what_differs_and_no_more() -> None:
    base = {"seed": 7, "dtype": "float32", "memory.kv_cache": False, "trace.per_request": False}
    headers = {
        "off": TraceHeader("zoo/base", base, "a CPU", {"torch": "2"}, "2026-11-21"),
        "on": TraceHeader(
            "zoo/base", {**base, "memory.kv_cache": True, "trace.per_request": True}, "a CPU",
            {"torch": "2"}, "2026-11-21", "modelled",
        ),
    }  # fmt: skip
    text = Provenance.of(headers, "3 requests").caption
    assert "off: measured on a CPU, 2026-11-21; on: modelled for a CPU, 2026-11-21" in text
    assert "off: memory.kv_cache=False. on: memory.kv_cache=True." in text
    assert "per_request" not in text
    assert "zoo/base, float32, 3 requests, seed 7" in text
    with pytest.raises(ValueError, match="at least one run"):
        Provenance.of({})


def test_commit_is_named_in_a_checkout_and_never_for_recorded_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(provenance, "checkout_commit", lambda: "abc12345")
    measured = Provenance.of({"": TraceHeader(device="a CPU")}).caption
    recorded = Provenance.of({"": TraceHeader(device="an H200", provenance="recorded")}).caption
    assert "commit abc12345" in measured
    assert "commit" not in recorded and recorded.startswith("Recorded on an H200")


def test_workloads_that_differ_are_told_apart(plain: RunTrace, on: RunTrace) -> None:
    same = provenance.workload_of({"A": plain.snapshot(), "B": plain.snapshot()})
    assert same == "4 requests, 26 tokens in, 35 out"
    assert provenance.workload_of({"A": plain.snapshot(), "B": on.snapshot()}).startswith("A 4 req")


def test_a_live_trace_is_drawn_as_it_stands() -> None:
    trace = runs.echo_run()
    side = figures.sides.sides(trace)[0]
    trace.append(trace.steps[0])
    assert len(side.run.steps) == len(trace) - 1
    assert theme.headless() is False
