"""The layout of a trace's JSON: its name, its version and its three tables.

A new column needs no new version, nor does a new field of the header: reading an older trace gives
its default, and an older minserve refuses what it does not know. When anything else changes (also
when an older column gets a total, because totals must agree with the steps), `VERSION` is raised,
and `UPGRADES` gets a function that converts a trace of the previous version to the new layout.
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
    """Version 3 to 4: the ids of cached blocks were called pages."""
    renamed = dict(data)
    renamed["cached_block_ids"] = renamed.pop("cached_pages", {})
    return renamed


UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {3: _name_cached_blocks}
"""Version -> function that converts a trace to the next version; 3 is the oldest
that can be read."""

_SHARED = (
    "schema", "version", "header", "max_steps", "max_requests", "totals", "step_columns", "steps",
    "detail_columns", "detail", "request_columns", "requests",
)  # fmt: skip
KEYS: Mapping[int, tuple[str, ...]] = {
    3: (*_SHARED, "cached_pages"),
    4: (*_SHARED, "cached_block_ids"),
}
"""Version -> the keys of its JSON object."""

STEPS = Table(StepTrace, beside=("requests", "cached_block_ids"))
"""A row per step; per-request detail and cached pages are stored outside the table."""
DETAIL = Table(RequestStep)
"""A row per step and request."""
REQUESTS = Table(FinishedRequest)
"""A row per finished request."""
