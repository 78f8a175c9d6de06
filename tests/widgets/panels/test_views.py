"""What panels are made of: one style sheet, folds for the keyboard, results that can be stale."""

from __future__ import annotations

import re
from pathlib import Path

import ipywidgets as widgets
import plotly.graph_objects as go
import pytest

from widgets import theme
from widgets.figures import LabFigure
from widgets.notebooks import fallback
from widgets.panels import views
from widgets.replays import live

HERE = Path(views.__file__).parents[1]


def accordion() -> views.Accordion:
    return views.Accordion([widgets.HTML("one"), widgets.HTML("two")], ["One", "Two"])


def test_a_title_opens_what_is_below_it_and_closes_the_others() -> None:
    more = accordion()
    one, two = more.children[0], more.children[2]
    assert more.selected_index is None and not one.value and not two.value
    one.value = True  # A press, from the mouse or the keyboard.
    assert more.selected_index == 0 and one.icon == "caret-down"
    two.value = True
    assert more.selected_index == 1 and not one.value and one.icon == "caret-right"
    two.value = False
    assert more.selected_index is None
    more.selected_index = 0
    assert one.value and not two.value


def test_a_title_is_a_button_and_the_page_hides_what_is_closed() -> None:
    more = accordion()
    assert [type(child) for child in more.children] == 2 * [widgets.ToggleButton, widgets.VBox]
    assert "lab-folds" in more._dom_classes
    assert ".lab-folds > .jupyter-button:not(.mod-active) + .widget-box" in theme.STYLE


def test_results_turn_grey_with_a_sentence_and_come_back() -> None:
    results = views.Results()
    results.box.children = (widgets.HTML("12.3x"),)
    assert not results.stale
    results.grey_out()
    results.grey_out()
    assert results.stale and results.widget._dom_classes.count("lab-stale") == 1
    assert "Settings have changed: run again." in results.widget.children[0].value
    assert results.widget.children[1] is results.box and "lab-results" in results.box._dom_classes
    assert ".lab-stale > .lab-results" in theme.STYLE
    results.restore()
    assert not results.stale and "lab-stale" not in results.widget._dom_classes


def test_a_badge_is_short_and_keeps_its_sentence_behind_it() -> None:
    text = views.badge("GPU: not yet <recorded>", "make gpu records it.")
    summary, rest = text.split("</summary>")
    assert "GPU: not yet &lt;recorded&gt;" in summary and "make gpu" not in summary
    assert "<details" in summary and " open" not in summary and "make gpu records it." in rest


def test_nothing_is_as_wide_as_its_place_with_margins_beside_it() -> None:
    """100 % and ipywidgets' two pixels of margin are wider than the place."""
    for path in sorted(HERE.rglob("*.py")):
        assert 'width="100%"' not in path.read_text(encoding="utf-8"), path.name


def test_every_panel_brings_its_style_sheet() -> None:
    class Shown(views.Displayed):
        widget = widgets.VBox([])

    shown = Shown()._repr_mimebundle_()["application/vnd.jupyter.widget-view+json"]
    page = widgets.widget._instances[shown["model_id"]]
    sheet, widget = page.children
    assert theme.STYLE.removeprefix("<style>") in sheet.value and widget is Shown.widget
    # JupyterLab's shortcuts are not for keys that are pressed in a panel.
    assert "lmSuppressShortcuts" in sheet.value
    assert page._dom_classes == ("lab",)
    text = fallback.bundle(Shown.widget, "words")["text/plain"]
    assert text.startswith("words")


def test_a_still_figure_follows_the_page_as_a_live_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)
    shown = views.as_widget(LabFigure(go.Figure(), "Measured here.", "It is 3.", "A figure of 3."))
    assert isinstance(shown.children[0], live._Plot)
    assert "It is 3." in shown.children[1].value


def test_a_sentence_says_its_kind_by_a_sign_too() -> None:
    signs = {kind: re.sub("<[^>]*>", "", views.sentence("x", kind)) for kind in ("good", "bad")}
    assert signs == {"good": "✓ x", "bad": "✗ x"}
    edges = {views.sentence("x", kind).count("border-left:3px") for kind in views._SIGNS}
    assert edges == {1}, "sentences of all kinds begin below each other"


def test_facts_of_two_sides_stand_side_by_side() -> None:
    facts = {"off: steps": 9, "tokens identical": True, "on: steps": 3, "off: copied": 0,
             "on: copied": 4, "off: KV: peak": 1, "only here: once": "x"}  # fmt: skip
    assert views.facts_rows(facts) == [
        {"fact": "tokens identical", "value": True},
        {"fact": "off: KV: peak", "value": 1},
        {"fact": "only here: once", "value": "x"},
        {"fact": "steps", "off": 9, "on": 3},
        {"fact": "copied", "off": 0, "on": 4},
    ]
    shown = views.as_widget({"off: steps": 9, "on: steps": 3}).value
    assert shown.count("<tr>") == 2 and "<td class=n>9</td><td class=n>3</td>" in shown


def test_the_figure_that_stays_comes_in_a_plot_of_its_own(monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "0")
    place, figure = views.FigureView(), LabFigure(go.Figure(), "Measured.", "It is 3.", "A figure.")
    place.draw(figure)
    live = place.widget.children[0]
    place.draw(figure)
    assert place.widget.children[0] is live, "changes go to the plot that is there"
    place.draw(figure, anew=True)
    assert place.widget.children[0] is not live and live.comm is None
