"""JupyterLab as `make lab` opens it, in a checkout of its own, and a notebook page to drive.

Everything the server writes goes below the folder it is given. Knows nothing about any chapter.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import psutil

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

ROOT = Path(__file__).resolve().parents[2]
START_S = 240.0
PAGE_MS = 120_000
"""For what a page does by itself."""
RUN_MS = 480_000
"""For what waits for the engine: a shared machine may be several times slower than a quiet one."""


class Lab:
    """A JupyterLab on a free loopback port, with a token, over copies made by `open_lab.py`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.log = folder / "server.log"
        self._token = secrets.token_hex(16)
        self._port = _free_port()
        folder.mkdir(exist_ok=True)
        shutil.copytree(ROOT / "labs", folder / "labs")
        self._write_settings()
        # The server leads a process group, so that no kernel outlives the tests.
        with self.log.open("w", encoding="utf-8") as log:
            self._server = subprocess.Popen(
                self._command(), cwd=folder, env=self._environment(), stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def url(self, page: str) -> str:
        """The address of a page, token included."""
        return f"http://127.0.0.1:{self._port}/{page}?token={self._token}"

    def add(self, name: str, cells: Sequence[str]) -> None:
        """Write a notebook of these code cells next to the chapters' copies."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)"}},
        )
        nbformat.write(notebook, self.work / name)

    def scores(self) -> dict[str, dict[str, Any]]:
        """What the panels have written to the file of scores, by key."""
        path = self.work / "progress.json"
        if not path.exists():
            return {}
        return {e["key"]: e for e in json.loads(path.read_text(encoding="utf-8"))["entries"]}

    def newest_kernel(self) -> psutil.Process:
        """The process of the kernel that was started last."""
        children = psutil.Process(self._server.pid).children(recursive=True)
        kernels = [each for each in children if "ipykernel_launcher" in " ".join(each.cmdline())]
        return max(kernels, key=lambda each: each.create_time())

    def end_kernels(self) -> None:
        """End the kernels of all notebooks; the server goes on."""
        with urllib.request.urlopen(self.url("api/sessions")) as answer:
            sessions = json.load(answer)
        for session in sessions:
            url = self.url(f"api/sessions/{session['id']}")
            urllib.request.urlopen(urllib.request.Request(url, method="DELETE")).close()

    def close(self) -> None:
        """End the server and its kernels."""
        self._server.terminate()
        try:
            self._server.wait(20)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def _command(self) -> list[str]:
        command = [sys.executable, str(self.folder / "labs" / "open_lab.py"), "--no-browser", "--"]
        command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={self._port}"]
        command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={self._token}"]
        command += ["--LabApp.news_url=None", "--LabApp.expose_app_in_browser=True"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--ServerApp.allow_root=True")
        return command

    def _environment(self) -> dict[str, str]:
        # A reader's environment, none of the lab's switches set. The one torch thread of all tests
        # stays: where the cores are busy, two wait for each other and are many times slower.
        mine = ("MINSERVE_", "JUPYTER")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
        folders = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
        return kept | {
            # The panels of this checkout, even where another one is installed.
            "PYTHONPATH": str(ROOT),
            "MINSERVE_PROGRESS": str(self.work / "progress.json"),
            "JUPYTER_PREFER_ENV_PATH": "1",
            **{f"JUPYTER_{name}": str(self.folder / path) for name, path in folders.items()},
            "JUPYTERLAB_SETTINGS_DIR": str(self.folder / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.folder / "workspaces"),
            "IPYTHONDIR": str(self.folder / "ipython"),
        }

    def _write_settings(self) -> None:
        # Without this, a question about news lies over the page.
        folder = self.folder / "settings" / "@jupyterlab" / "apputils-extension"
        folder.mkdir(parents=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        path = folder / "notification.jupyterlab-settings"
        path.write_text(json.dumps(quiet), encoding="utf-8")

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            if self._server.poll() is not None:
                raise RuntimeError(f"JupyterLab did not start:\n{self.log.read_text()[-4000:]}")
            try:
                with urllib.request.urlopen(self.url("api/status"), timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Cells run in order; those whose code is folded show no number.
_ALL_RUN = """() => {
  const prompts = document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt');
  const last = prompts[prompts.length - 1];
  return last && /^\\[\\d+\\]:$/.test(last.textContent.trim());
}"""

# What plotly holds and draws, not what the kernel sent.
_PLOT = """plot => ({
  traces: plot._fullData.map(t => ({
    name: t.name, points: (t.y || []).length, highest: Math.max(0, ...Array.from(t.y || [])),
  })),
  cursors: (plot.layout.shapes || []).map(shape => shape.x0),
  drawn: [...plot.querySelectorAll('path.js-line')].map(p => p.getAttribute('d')).join(' '),
})"""


_DRAWN = """() => [...document.querySelectorAll('.jp-Notebook .js-plotly-plot')]
  .every(plot => plot.querySelector('.main-svg'))"""

LOOKS = Path(__file__).with_name("looks.js")


class Notebook:
    """A notebook open in the browser."""

    def __init__(self, page: Page, lab: Lab, name: str) -> None:
        self.page, self.lab = page, lab
        self.broken = ""
        """The step that failed on this page; later ones would only repeat it."""
        page.set_default_timeout(PAGE_MS)
        # In a workspace of its own: JupyterLab would open the last page's notebooks again.
        page.goto(lab.url(f"lab/workspaces/{Path(name).stem}/tree/work/{name}"))
        # Before the kernel answers, Run All is lost.
        page.get_by_text(re.compile(r"Python 3 .*\| Idle")).wait_for(timeout=RUN_MS)
        self.outputs = page.locator(".jp-Notebook .jp-OutputArea-output")
        # An exercise has a button "Check" too, and a prediction "Show me".
        check = page.get_by_role("button", name="Check", exact=True)
        shown = page.get_by_role("button", name="Show me", exact=True)
        self.estimates = self.outputs.filter(has=check).filter(has=shown)
        self.replays = self.outputs.filter(has=page.get_by_title("Play or pause"))
        self.plots = page.locator(".jp-Notebook .js-plotly-plot")
        self.errors = page.locator(
            '.jp-Notebook [data-mime-type="application/vnd.jupyter.error"], '
            '.jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"]'
        )

    def run_all(self) -> None:
        """Run, Run All Cells, in the menu."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def wait_until_all_ran(self) -> None:
        """The last code cell has its number."""
        self.page.wait_for_function(_ALL_RUN, timeout=RUN_MS)

    def show_me(self) -> None:
        """Show what is hidden behind predictions and estimates, and wait for all runs to end."""
        from playwright.sync_api import expect

        enabled = self.page.locator(":enabled:visible")
        show = self.outputs.get_by_role("button", name="Show me", exact=True).and_(enabled)
        # A button is disabled by the kernel, a while after the click.
        while left := show.count():
            show.first.click()
            expect(show).not_to_have_count(left)
        # Runs that nobody waits for in a cell go on behind it.
        stop = self.outputs.get_by_role("button", name="Stop", exact=True).and_(enabled)
        expect(stop).to_have_count(0, timeout=RUN_MS)

    def resize(self, width: int, height: int) -> None:
        """Make the page so wide; plots follow after a while."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.settle()

    def use_theme(self, name: str) -> None:
        """JupyterLab Light or JupyterLab Dark."""
        change = "name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})"
        self.page.evaluate(change, name)
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)
        self.settle()

    def settle(self) -> None:
        """Wait until plots are drawn as the page is now."""
        self.page.wait_for_timeout(500)
        self.page.wait_for_function(_DRAWN)

    def look(self, what: str) -> list[str]:
        """What a reader would notice in the outputs: `looks.js` says which `what` there are."""
        if not self.page.evaluate("() => 'minserveLooks' in globalThis"):
            self.page.evaluate(LOOKS.read_text(encoding="utf-8"))
        found: list[str] = self.page.evaluate(f"() => minserveLooks.{what}()")
        return found

    def panel(self, title: str) -> Locator:
        """The panel with this heading."""
        return self.outputs.filter(has=self.page.get_by_role("heading", name=title, exact=True))

    def plot(self, place: Locator) -> dict[str, Any]:
        """What the first plot in `place` draws: its traces, its cursors, its lines' paths."""
        shown: dict[str, Any] = place.locator(".js-plotly-plot").first.evaluate(_PLOT)
        return shown

    def drawn_plot(self, place: Locator) -> dict[str, Any]:
        """The same, once it has been drawn: plotly.js has to be read first."""
        marks = place.locator(".js-plotly-plot").first.locator("g.trace, g.points, path.js-line")
        marks.first.wait_for(state="attached", timeout=RUN_MS)
        return self.plot(place)

    def wait_for(self, true: Callable[[], bool], what: str) -> None:
        """Ask until `true()`; fails with `what` was waited for."""
        deadline = time.monotonic() + RUN_MS / 1000
        while not true():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            self.page.wait_for_timeout(100)

    def slider(self, place: Locator, label: str) -> Locator:
        """The slider with this label: ipywidgets gives its handle no name of its own."""
        named = self.page.locator(".widget-label").get_by_text(label, exact=True)
        return place.locator(".widget-hslider, .widget-slider").filter(has=named)

    def drag(self, slider: Locator, share: float) -> None:
        """Drag a slider's handle with the mouse to `share` of its track."""
        handle, track = slider.get_by_role("slider"), slider.locator(".noUi-base")
        handle.scroll_into_view_if_needed()
        start, ends = handle.bounding_box(), track.bounding_box()
        assert start is not None and ends is not None, "the slider is not on the page"
        mouse = self.page.mouse
        mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
        mouse.down()
        goal, middle = ends["x"] + share * ends["width"], ends["y"] + ends["height"] / 2
        mouse.move(goal, middle, steps=12)
        mouse.up()
