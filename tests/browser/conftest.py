"""Browser tests run only when asked for (`-m browser`), one page after the other, on one server.

The tests of a module go through one page in order, as a reader does; after the first that fails
the others are skipped, and a screenshot is kept.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import chromium
from browser.lab import PAGE_MS, Lab, Notebook

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "browser: drives JupyterLab in Chromium; only run by make test-browser"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the browser tests out, unless the marker was asked for."""
    if "browser" in config.getoption("markexpr"):
        return
    left_out = [item for item in items if item.get_closest_marker("browser")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium, or a skip that says how to get it."""
    pytest.importorskip("playwright", reason=chromium.NO_PLAYWRIGHT)
    try:
        program = chromium.find()
    except chromium.Missing as missing:
        pytest.skip(str(missing))
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PAGE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=chromium.FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One JupyterLab for all tests. Asked for after the browser: without one there is no use."""
    server = Lab(tmp_path_factory.mktemp("checkout"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def open_notebook(browser: Browser, lab: Lab) -> Iterator[Callable[[str], Notebook]]:
    """Open a notebook from work/ in a page of its own; closed after the module's tests."""
    pages = []

    def open_it(name: str) -> Notebook:
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        pages.append(page)
        try:
            return Notebook(page, lab, name)
        except Exception:
            _screenshot(page, name)
            raise

    yield open_it
    for page in pages:
        page.close()


def _screenshot(page: Any, name: str) -> str:
    folder = Path(tempfile.gettempdir()) / "minserve-browser"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{time.strftime('%H%M%S')}.png"
    try:
        page.screenshot(path=path)
    except Exception as error:
        # A page that hangs cannot be painted either; the test's own failure is the news.
        return f"none could be taken: {error}"
    return str(path)


def _page_of(item: pytest.Item) -> Notebook | None:
    given = getattr(item, "funcargs", {}).values()
    return next((each for each in given if isinstance(each, Notebook)), None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    notebook = _page_of(item)
    if notebook is not None and notebook.broken:
        pytest.skip(f"an earlier step on this page failed: {notebook.broken}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    notebook = _page_of(item)
    if notebook is not None and report.failed and not notebook.broken:
        notebook.broken = item.name
        report.sections.append(("screenshot", _screenshot(notebook.page, item.name)))
        report.sections.append(("server log", notebook.lab.log.read_text()[-2000:]))
    return report
