"""The book, served on this machine; what its pages ask for, and complain about, is noted."""

from __future__ import annotations

import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DRAWN_MS = 120_000
"""A busy machine draws thirty plots in a minute."""


class Site:
    """A folder of pages behind an address, until it is closed."""

    def __init__(self, folder: Path) -> None:
        class Quiet(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(folder))

            def log_message(self, *arguments: Any) -> None:
                pass

        self.folder = folder
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def pages(self) -> list[str]:
        """The chapters' pages, and the others that a reader meets."""
        chapters = sorted(path.name for path in self.folder.glob("[0-9]*_*.html"))
        return ["index.html", *chapters, "glossary.html"]

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class Reader:
    """One browser window on the site; `complaints` has all that a reader should never meet."""

    def __init__(self, browser: Browser, site: Site, width: int = 1280) -> None:
        self.site, self.complaints = site, []
        self._context = browser.new_context(viewport={"width": width, "height": 1000})
        self.page: Page = self._context.new_page()
        self.page.on("request", self._asked)
        self.page.on("response", self._answered)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))

    def open(self, name: str) -> Page:
        """A page, with all its figures drawn."""
        self.page.goto(self.site.address + name)
        if self.page.locator(".book-figure").count():
            self.page.wait_for_selector("html[data-book=drawn]", timeout=DRAWN_MS)
        return self.page

    def close(self) -> None:
        """Close the window."""
        self._context.close()

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.site.address, "data:", "blob:")):
            self.complaints.append(f"asks another host: {request.url}")

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.status}: {response.url}")

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"console: {message.text}")
