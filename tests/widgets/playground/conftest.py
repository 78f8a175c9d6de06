"""Playgrounds in tests: alone in the process, as other panels are."""

from tests.widgets.panels.conftest import apart, headless

__all__ = ["apart", "headless"]
