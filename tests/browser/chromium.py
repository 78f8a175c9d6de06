"""Where a Chromium is, for the browser tests. `python tests/browser/chromium.py` prints it.

Knows nothing about tests: `make test-browser` asks before it starts any.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--disable-gpu", "--disable-quic", "--disable-sync"]
NO_PLAYWRIGHT = "The browser tests need Playwright: make test-browser installs it."
NO_CHROMIUM = (
    "The browser tests need Chromium, and none was found. On Debian: apt install chromium. "
    "Elsewhere: .venv/bin/python -m playwright install chromium. Or name the program of yours: "
    "MINSERVE_CHROMIUM=/path/to/chrome make test-browser"
)


class Missing(Exception):
    """Nothing to test with; its text says how to get it."""


def find() -> str:
    """The path of a Chromium or Chrome. Raises Missing, with a sentence, where there is none."""
    chosen = os.environ.get("MINSERVE_CHROMIUM")
    if chosen:
        if shutil.which(chosen) is None:
            raise Missing(f"MINSERVE_CHROMIUM={chosen} is no program.")
        return chosen
    found = next((path for path in map(shutil.which, NAMES) if path), None) or _playwrights_own()
    if found is None:
        raise Missing(NO_CHROMIUM)
    return found


def _playwrights_own() -> str | None:
    """What `playwright install chromium` downloads."""
    if importlib.util.find_spec("playwright") is None:
        return None
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    return str(path) if path.exists() else None


if __name__ == "__main__":
    try:
        print(find())
    except Missing as missing:
        sys.exit(str(missing))
