"""The book in a real browser: silent, whole, readable on paper-white and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browser.lab import LOOKS
from browser.site import Reader, Site

from book.records import chapters

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser

PAGES = [
    "index.html",
    *(f"{path.stem}.html" for path in chapters()),
    "glossary.html",
]
PLACES = "article, .sidebar-tree"


@pytest.fixture(scope="module")
def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("myst_nb", reason="the book's packages are missing: make book brings them")
    from book.build import build

    folder = tmp_path_factory.mktemp("book") / "site"
    build(folder)
    served = Site(folder)
    yield served
    served.close()


@pytest.fixture(scope="module", params=[1280, 390])
def reader(request: pytest.FixtureRequest, browser: Browser, site: Site) -> Iterator[Reader]:
    window = Reader(browser, site, request.param)
    yield window
    window.close()


def test_all_pages_are_tested_and_the_whole_site_is_small(site: Site) -> None:
    from book.build import MOST_BYTES, bytes_of

    assert site.pages == PAGES
    assert bytes_of(site.folder) < MOST_BYTES == 15_000_000
    assert len(list(site.folder.rglob("plotly*.js"))) == 1
    assert not list(site.folder.rglob("*.map"))


@pytest.fixture(scope="module", params=PAGES)
def opened(request: pytest.FixtureRequest, reader: Reader) -> tuple[Page, list[str]]:
    """A page with its figures drawn, and what was wrong until then."""
    reader.complaints.clear()
    page = reader.open(request.param)
    return page, list(reader.complaints)


def test_a_page_is_silent_asks_no_other_host_and_does_not_scroll_aside(
    opened: tuple[Page, list[str]],
) -> None:
    page, complaints = opened
    for plot in page.locator(".book-plot").all():
        assert plot.locator(".main-svg").count(), f"not drawn: {plot.get_attribute('aria-label')}"
    too_wide = page.evaluate(
        """() => [document.documentElement, ...document.querySelectorAll(".book-plot, pre")]
          .filter(part => part.scrollWidth > part.clientWidth + 1)
          .map(part => `${part.tagName}.${part.className}: ${part.textContent.slice(0, 80)}`)"""
    )
    assert too_wide == []
    assert complaints == []


def test_no_text_is_cut_off_at_the_edge_of_its_plot(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    cut = page.evaluate(
        """() => [...document.querySelectorAll(".book-plot")].flatMap(plot => {
          const edge = plot.getBoundingClientRect();
          return [...plot.querySelectorAll(".main-svg text")].filter(text => {
            const box = text.getBoundingClientRect();
            const over = Math.max(edge.left - box.left, box.right - edge.right,
                                  edge.top - box.top, box.bottom - edge.bottom);
            return box.width && getComputedStyle(text).visibility !== "hidden" && over > 2;
          }).map(text => text.textContent);
        })"""
    )
    assert cut == []


def test_text_stands_out_in_both_themes(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    page.evaluate("places => { globalThis.minservePlaces = places; }", PLACES)
    page.evaluate(LOOKS.read_text(encoding="utf-8"))
    page.evaluate("() => document.querySelectorAll('details').forEach(each => (each.open = true))")
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        # What is unfolded fades in.
        page.evaluate("() => Promise.all(document.getAnimations().map(each => each.finished))")
        assert page.evaluate("() => minserveLooks.pale()") == [], theme


def test_a_signature_figure_moves_with_its_slider(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    if not page.locator(".book-figure").count():
        return  # index and glossary
    moving = page.locator(".book-figure[data-name]").filter(has=page.locator(".book-controls"))
    assert moving.count(), "no signature figure can be moved"
    for figure in moving.all():
        slider, plot = figure.locator("input"), figure.locator(".book-plot")
        said = figure.locator("output").inner_text()
        before = _drawn(plot)
        slider.evaluate("slider => slider.value = Math.floor(slider.max / 2)")
        slider.dispatch_event("input")
        _wait_for_change(plot, before)
        assert figure.locator("output").inner_text() != said
        # From the keyboard as well.
        before = _drawn(plot)
        slider.press("Home")
        _wait_for_change(plot, before)


def test_a_figure_plays_to_its_end_and_stops(reader: Reader) -> None:
    page = reader.open("45b_chunked_prefill.html")
    figure = page.locator(".book-figure[data-name='45b_lanes']")
    button, slider = figure.locator("button"), figure.locator("input")
    button.click()
    assert button.inner_text() == "Pause"
    page.wait_for_function("slider => slider.value > 3", arg=slider.element_handle())
    button.click()
    assert button.inner_text() == "Play"
    at = slider.input_value()
    page.wait_for_timeout(500)
    assert slider.input_value() == at


@pytest.mark.parametrize("word", ["preemption", "TTFT", "radix"])
def test_search_finds_a_term(reader: Reader, word: str) -> None:
    reader.complaints.clear()
    page = reader.open(f"search.html?q={word}")
    hit = page.locator("#search-results li a").first
    hit.wait_for()
    hit.click()
    page.wait_for_url(lambda url: "search.html" not in url)
    assert word.lower() in page.locator("article").inner_text().lower()
    assert reader.complaints == []


def test_on_paper_answers_are_open_and_controls_and_tables_are_gone(reader: Reader) -> None:
    page = reader.open("45b_chunked_prefill.html")
    page.emulate_media(media="print")
    page.evaluate("() => window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    for gone in (".book-controls", ".sidebar-drawer", ".skip-to-content", ".lab-figure table"):
        assert page.locator(gone).first.is_hidden(), gone
    page.evaluate("() => window.dispatchEvent(new Event('afterprint'))")
    assert page.locator(".book-fold[open]").count() == 0
    page.emulate_media(media="screen")


def test_a_figure_is_moved_from_the_keyboard_and_the_page_stays(reader: Reader) -> None:
    page = reader.open("45b_chunked_prefill.html")
    figure = page.locator(".book-figure[data-name='45b_lanes']")
    slider, before = figure.locator("input"), _drawn(figure.locator(".book-plot"))
    slider.focus()
    at = int(slider.input_value())
    page.keyboard.press("ArrowLeft")
    assert int(slider.input_value()) == at - 1
    assert slider.get_attribute("aria-valuetext") == figure.locator("output").inner_text()
    _wait_for_change(figure.locator(".book-plot"), before)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert figure.locator("button").inner_text() == "Pause"
    page.keyboard.press("Space")
    assert page.url.endswith("45b_chunked_prefill.html")


def test_a_term_leads_to_the_glossary(reader: Reader) -> None:
    page = reader.open("45b_chunked_prefill.html")
    page.locator("article a[href^='glossary.html#term-']").first.click()
    page.wait_for_url("**/glossary.html#term-*")
    assert page.locator("dt:target").count() == 1


def test_without_plotlys_script_each_figure_says_so(browser: Browser, site: Site) -> None:
    page = browser.new_page()
    page.route("**/plotly.min.js", lambda route: route.abort())
    page.goto(f"{site.address}47_variable_length.html")
    page.wait_for_selector("html[data-book=drawn]")
    plots = page.locator(".book-plot").all_inner_texts()
    assert plots and set(plots) == {"This figure could not be drawn. Its numbers are listed below."}
    assert page.locator(".book-controls:visible").count() == 0
    page.close()


def test_without_javascript_each_figure_says_so(browser: Browser, site: Site) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site.address}47_variable_length.html")
    assert page.locator(".book-plot noscript").first.is_visible()
    assert page.locator(".book-controls:visible").count() == 0
    context.close()


def _drawn(plot: Locator) -> str:
    found: str = plot.evaluate("plot => plot.querySelector('.main-svg').parentElement.innerHTML")
    return found


def _wait_for_change(plot: Locator, before: str) -> None:
    plot.page.wait_for_function(
        "([plot, before]) => plot.querySelector('.main-svg').parentElement.innerHTML !== before",
        arg=[plot.element_handle(), before],
    )
