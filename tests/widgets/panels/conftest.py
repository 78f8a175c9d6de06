"""Panels in tests: each alone in its process, scores and ceilings in a temporary directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from widgets import workers


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees another's panels, scores or measurements."""
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setenv("MINSERVE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)
    monkeypatch.delenv("MINSERVE_CLOCK", raising=False)
    workers._live.clear()
    yield
    for worker in list(workers._live):
        worker.stop()
        assert worker.wait(10)
    workers._live.clear()


@pytest.fixture
def headless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synchronous runs, nothing drawn: for what does not depend on threads."""
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
