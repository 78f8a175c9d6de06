"""Every chapter at every width: Run All and Show me leave no error, and nothing that scrolls aside.

Only with `--full`. A chapter runs once, in the narrowest page, which is then widened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from browser.lab import ROOT, RUN_MS, Lab, Notebook

pytestmark = [pytest.mark.browser, pytest.mark.full]

CHAPTERS = sorted(path.name for path in (ROOT / "labs").glob("[0-9]*.ipynb"))
WIDTHS, HEIGHT = (1280, 1600), 1000
MARGINS = 4
"""Pixels: ipywidgets puts two on each side of a widget, also where that is as wide as its place."""

# What can be scrolled sideways in the outputs. An output that is not on the screen has no layout,
# so each is brought there first.
_WIDER_THAN_ITS_PLACE = """async margins => {
  const frame = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  const found = [];
  for (const output of document.querySelectorAll('.jp-Notebook .jp-OutputArea-output')) {
    output.scrollIntoView();
    await frame();
    for (const part of [output, ...output.querySelectorAll('*')]) {
      const scrolls = ['auto', 'scroll'].includes(getComputedStyle(part).overflowX);
      if (scrolls && part.clientWidth && part.scrollWidth > part.clientWidth + margins)
        found.push(`${part.className || part.tagName}: ${part.scrollWidth} pixels in `
          + `${part.clientWidth}: ${part.innerText.slice(0, 80)}`);
    }
  }
  return found;
}"""


@pytest.fixture(scope="module", params=CHAPTERS)
def chapter(
    request: pytest.FixtureRequest, open_notebook: Callable[[str], Notebook], lab: Lab
) -> Iterator[Notebook]:
    notebook = open_notebook(request.param)
    # Before anything is drawn: a plot that is no widget grows with the page, but seldom shrinks.
    notebook.page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
    notebook.run_all()
    notebook.wait_until_all_ran()
    yield notebook
    notebook.page.close()
    lab.end_kernels()


def test_run_all_and_show_me_leave_no_error(chapter: Notebook) -> None:
    from playwright.sync_api import expect

    expect(chapter.errors).to_have_count(0)
    show = chapter.outputs.get_by_role("button", name="Show me", exact=True).and_(
        chapter.page.locator(":enabled")
    )
    for _ in range(show.count()):
        show.first.click()
    expect(show).to_have_count(0)
    # Runs that nobody waits for in a cell go on behind it.
    busy = chapter.outputs.get_by_role("button", name="Stop", exact=True).and_(
        chapter.page.locator(":enabled:visible")
    )
    expect(busy).to_have_count(0, timeout=RUN_MS)
    expect(chapter.errors).to_have_count(0)
    expect(chapter.outputs.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_page(chapter: Notebook, width: int) -> None:
    chapter.page.set_viewport_size({"width": width, "height": HEIGHT})
    chapter.page.wait_for_timeout(500)  # Plots follow the page's size after a while.
    assert chapter.page.evaluate(_WIDER_THAN_ITS_PLACE, MARGINS) == []
