"""Every chapter as a page: no error, nothing that scrolls aside or is cut, text that stands out.

A chapter runs once, and is then looked at in two widths and two themes, and from the keyboard.
Three chapters are drawn; with `--full` all of them run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sampled
from browser.lab import ROOT, Lab, Notebook

pytestmark = pytest.mark.browser

CHAPTERS = sorted(path.name for path in (ROOT / "labs").glob("[0-9]*.ipynb"))
DRAWN = sampled.drawn({"chapters": CHAPTERS}, {"chapters": 3}, sampled.seed)
WIDTHS, HEIGHT = (1600, 1280), 1000
"""Pixels, narrower the second time: plots must follow a page that shrinks, too."""
THEMES = ("JupyterLab Light", "JupyterLab Dark")


@pytest.fixture(
    scope="module",
    params=[pytest.param(c, marks=() if c in DRAWN else pytest.mark.full) for c in CHAPTERS],
)
def chapter(
    request: pytest.FixtureRequest, open_notebook: Callable[[str], Notebook], lab: Lab
) -> Iterator[Notebook]:
    notebook = open_notebook(request.param)
    # A reader whose system asks for less motion, from the beginning.
    notebook.page.emulate_media(reduced_motion="reduce")
    notebook.resize(WIDTHS[1], HEIGHT)
    start = time.perf_counter()
    notebook.run_all()
    notebook.wait_until_all_ran()
    tell = request.config.pluginmanager.get_plugin("terminalreporter")
    tell.write_line(f"\n{request.param}: Run All took {time.perf_counter() - start:.1f} s")
    yield notebook
    notebook.page.close()
    lab.end_kernels()


def test_run_all_and_show_me_leave_no_error(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    # Errors, and everything written to stderr, which JupyterLab shows in red.
    expect(chapter.errors).to_have_count(0)
    chapter.show_me()
    expect(chapter.errors).to_have_count(0)
    expect(chapter.outputs.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_scrolls_aside_or_is_cut(chapter: Notebook, width: int) -> None:
    chapter.resize(width, HEIGHT)
    for what in ("wider", "broken", "crowded"):
        assert chapter.look(what) == []


@pytest.mark.parametrize("theme", THEMES)
def test_text_stands_out_from_what_is_behind_it(chapter: Notebook, theme: str) -> None:
    chapter.use_theme(theme)
    assert chapter.look("pale") == []


def test_what_is_folded_away_looks_as_good(chapter: Notebook) -> None:
    chapter.use_theme(THEMES[0])
    folds = chapter.page.locator(".lab-folds").all()
    for place in range(max((fold.locator("> button").count() for fold in folds), default=0)):
        for fold in folds:
            title = fold.locator("> button").nth(place)
            if title.count() and title.is_visible():
                title.press("Enter")
        chapter.settle()
        for what in ("wider", "broken", "crowded", "pale"):
            assert chapter.look(what) == [], place
    chapter.look("unfold")
    for what in ("wider", "broken", "pale"):
        assert chapter.look(what) == []


def test_a_keyboard_reaches_every_control(chapter: Notebook) -> None:
    assert chapter.look("unreachable") == []
    for output in chapter.outputs.all():
        output.scroll_into_view_if_needed()
        stops: list[str] = output.evaluate("output => minserveLooks.stops(output)")
        reached = set()
        # A stop may hold several controls, of which the arrow keys choose.
        for _ in range(4 * len(stops) + 4):
            reached.add(chapter.page.evaluate("() => document.activeElement.dataset.stop ?? ''"))
            chapter.page.keyboard.press("Tab")
        assert [name for place, name in enumerate(stops) if f"{place}" not in reached] == []


# Selector, key, the key where the first does nothing, and what the key changes.
KEYS = (
    ("summary", "Enter", "Enter", "part => part.parentElement.open"),
    (
        ".noUi-target:not([disabled]) .noUi-handle", "ArrowRight", "ArrowLeft",
        "part => part.ariaValueNow",
    ),
    ("select:enabled", "ArrowDown", "ArrowUp", "part => part.value"),
    ("input[type=radio]:enabled:not(:checked)", "Space", "Space", "part => part.checked"),
    (".lab-folds > button", "Enter", "Enter", "part => part.classList.contains('mod-active')"),
)  # fmt: skip


def test_controls_answer_to_the_keyboard(chapter: Notebook) -> None:
    """One of each kind: arrow keys move and choose, Space ticks, Enter unfolds."""
    found = 0
    for selector, key, other, state in KEYS:
        controls = chapter.outputs.locator(selector).locator("visible=true")
        if not controls.count():
            continue
        found += 1
        control = controls.first.element_handle()
        before = control.evaluate(state)
        for pressed in (key, other):
            control.press(pressed)
            chapter.page.wait_for_timeout(200)
            if control.evaluate(state) != before:
                break
        else:
            pytest.fail(f"{selector}: neither {key} nor {other} does anything")
    assert found >= 2


def test_replays_wait_and_say_so_where_less_motion_is_asked_for(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    plays = chapter.page.get_by_title("Play or pause")
    moments = chapter.replays.get_by_text("of real time").all_inner_texts
    words = chapter.replays.get_by_text("Your system asks for less motion.")
    before = moments()
    for place in range(plays.count()):
        expect(plays.nth(place)).to_have_text("Play")
        expect(words.nth(place)).to_be_visible()
    chapter.page.wait_for_timeout(1500)
    assert moments() == before
    assert _moving(chapter) == []
    chapter.page.emulate_media(reduced_motion="no-preference")
    for place in range(plays.count()):
        expect(words.nth(place)).to_be_hidden()


def _moving(chapter: Notebook) -> list[Any]:
    found: list[Any] = chapter.page.evaluate(
        """() => [...document.querySelectorAll('.jp-OutputArea-output .lab *')]
          .filter(part => part.getAnimations().length
            || !['none', 'all 0s ease 0s'].includes(getComputedStyle(part).transition))
          .map(part => `${part.className}: ${getComputedStyle(part).transition}`)"""
    )
    return found
