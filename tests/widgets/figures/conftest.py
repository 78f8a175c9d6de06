"""Runs that several tests look at; drawn live unless a test says otherwise."""

from __future__ import annotations

import pytest

from minserve.trace import RunTrace
from tests.widgets.figures import runs


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINSERVE_HEADLESS", raising=False)


@pytest.fixture(scope="session")
def plain() -> RunTrace:
    return runs.echo_run()


@pytest.fixture(scope="session")
def preempting() -> RunTrace:
    return runs.preempting_run()


@pytest.fixture(scope="session")
def off() -> RunTrace:
    return runs.without_cache()


@pytest.fixture(scope="session")
def on() -> RunTrace:
    return runs.with_cache()
