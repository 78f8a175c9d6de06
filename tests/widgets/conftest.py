"""A replay in tests: drawn as for a reader, its errors raised at the end of the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minserve.trace import RunTrace
from tests.widgets.figures import runs
from widgets import workers


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Not headless, and alone: no test sees another's panels."""
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)
    workers._live.clear()
    yield
    workers.raise_panel_errors()
    workers._live.clear()


@pytest.fixture(scope="module")
def trace() -> RunTrace:
    """A run in which requests lose their pages."""
    return runs.preempting_run()
