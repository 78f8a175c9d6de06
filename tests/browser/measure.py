"""What a reader waits for, measured in a real browser: `make timings`.

Opens JupyterLab as `make lab` does, in a copy of the chapters, and prints seconds and bytes beside
what the lab promises, as a table or as JSON. A measurement, not a test: let nothing else run.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from browser import chromium
from browser.lab import ROOT, RUN_MS, Lab, Notebook

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

START = "00_start_here.ipynb"
RACE = "memory.kv_cache: off against on"
STOPS = 5

# From the click to the word, inside the page: no round trip to this program is counted.
_STOP = """panel => new Promise(done => {
  const button = [...panel.querySelectorAll('button')].find(b => b.textContent.trim() === 'Stop');
  const start = performance.now();
  const look = () => {
    if (!panel.textContent.includes('Stopped.')) return false;
    watch.disconnect();
    done((performance.now() - start) / 1000);
    return true;
  };
  const watch = new MutationObserver(look);
  watch.observe(panel, {subtree: true, childList: true, characterData: true});
  button.click();
})"""


@dataclass(frozen=True)
class Measured:
    """One quantity, what came out each time, and what is promised of the largest."""

    what: str
    unit: str
    values: tuple[float, ...]
    promise: float | None = None

    @property
    def kept(self) -> bool:
        return self.promise is None or max(self.values) <= self.promise


class Reader:
    """Someone at a browser, with a watch."""

    def __init__(self, browser: Browser, lab: Lab) -> None:
        self._browser, self._lab = browser, lab

    @contextmanager
    def open(self, chapter: str) -> Iterator[Notebook]:
        """The chapter in a page of its own, with a fresh kernel."""
        page = self._browser.new_page(viewport={"width": 1300, "height": 1000})
        try:
            yield Notebook(page, self._lab, chapter)
        finally:
            page.close()

    def first_text(self) -> float:
        """From Shift + Enter in the first code cell to the first character under it."""
        with self.open(START) as notebook:
            cell = notebook.page.locator(".jp-Notebook .jp-CodeCell").first
            cell.locator(".cm-content").click()
            start = time.perf_counter()
            notebook.page.keyboard.press("Shift+Enter")
            cell.locator(".jp-OutputArea-output").first.wait_for(timeout=RUN_MS)
            return time.perf_counter() - start

    def run_all(self, chapter: str) -> tuple[float, float]:
        """Seconds from Run All to the last cell's number, and the kernel's peak bytes."""
        copy = f"timed_{chapter}"  # An open notebook would keep its kernel.
        shutil.copy(self._lab.work / chapter, self._lab.work / copy)
        with self.open(copy) as notebook:
            start = time.perf_counter()
            notebook.run_all()
            notebook.wait_until_all_ran()
            seconds = time.perf_counter() - start
            if notebook.errors.count():
                raise RuntimeError(f"{chapter} shows an error: run make test-browser")
            return seconds, float(_peak_bytes(self._lab.newest_kernel()))

    def stop(self, times: int) -> Iterator[float]:
        """From the press on Stop to the panel's word that the run has ended."""
        copy = f"stopped_{START}"
        shutil.copy(self._lab.work / START, self._lab.work / copy)
        with self.open(copy) as notebook:
            notebook.run_all()
            notebook.wait_until_all_ran()
            notebook.estimates.first.get_by_role("button", name="10x").click()
            notebook.estimates.first.get_by_role("button", name="Check").click()
            race = notebook.panel(RACE)
            for _ in range(times):
                race.get_by_role("button", name="Run").click()
                live: Locator = race.get_by_text(re.compile("Live: .* is running"))
                live.wait_for(timeout=RUN_MS)
                race.get_by_text("so far").wait_for(timeout=RUN_MS)
                yield float(race.evaluate(_STOP))


def _peak_bytes(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    info = process.memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def measure(chapters: Sequence[str]) -> Iterator[Measured]:
    """All quantities, one after the other."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.find(), args=chromium.FLAGS)
        start = time.perf_counter()
        lab = Lab(Path(folder) / "checkout")
        try:
            reader = Reader(browser, lab)
            answers = time.perf_counter() - start
            with reader.open(START):
                ready = time.perf_counter() - start
            yield Measured("JupyterLab answers", "s", (answers,))
            yield Measured("chapter 00 is open, its kernel idle", "s", (ready,))
            yield Measured("first text after Shift + Enter", "s", (reader.first_text(),), 10.0)
            for chapter in chapters:
                number = chapter.split("_")[0]
                seconds, peak = reader.run_all(chapter)
                yield Measured(f"{number}: Run All", "s", (seconds,), 60.0)
                yield Measured(f"{number}: kernel's peak memory", "GB", (peak / 1e9,), 1.2)
            yield Measured("Stop, from the press", "s", tuple(reader.stop(STOPS)), 0.5)
        finally:
            browser.close()
            lab.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="measure.py", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON, for keeping")
    options = parser.parse_args(argv)
    chapters = sorted(path.name for path in (ROOT / "labs").glob("[0-9][0-9]*_*.ipynb"))
    found: list[dict[str, Any]] = []
    kept = True
    for each in measure(chapters):
        kept &= each.kept
        found.append(asdict(each) | {"kept": each.kept})
        if not options.json:
            numbers = ", ".join(f"{value:.2f}" for value in each.values)
            limit = "" if each.promise is None else f"at most {each.promise:g} {each.unit}"
            sign = "" if each.kept else "  MORE"
            print(f"{each.what:40} {numbers:>8} {each.unit:3} {limit}{sign}", flush=True)
    if options.json:
        print(json.dumps(found, indent=1))
    return 0 if kept else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except chromium.Missing as missing:
        sys.exit(str(missing))
