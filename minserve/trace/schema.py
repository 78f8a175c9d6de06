"""The layout of a trace's JSON: its name, its version and its three tables.

A new column is no new version: an older trace reads with the column's default, and an older
minserve refuses a column that it does not know. When anything else changes, `VERSION` goes up, and
`UPGRADES` gets a function that brings a trace of the version before to the new layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minserve.trace.parts.requests import RequestStep
from minserve.trace.snapshot import FinishedRequest
from minserve.trace.step import StepTrace
from minserve.trace.table import Table

SCHEMA = "minserve.trace"
VERSION = 4


def _name_cached_blocks(data: dict[str, Any]) -> dict[str, Any]:
    """Version 3 to 4: the ids of cached blocks had the name of pages."""
    renamed = dict(data)
    renamed["cached_block_ids"] = renamed.pop("cached_pages", {})
    return renamed


UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {3: _name_cached_blocks}
"""Version -> what makes a trace of that version one of the next; 3 is the oldest that is read."""

STEPS = Table(StepTrace, beside=("requests", "cached_block_ids"))
"""A row per step; what it did for each request, and cached pages, are kept beside the table."""
DETAIL = Table(RequestStep)
"""A row per step and request."""
REQUESTS = Table(FinishedRequest)
"""A row per finished request."""
