"""A trace at one moment: what exports, figures and summaries read.

A snapshot never changes, so its readers need no lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from minserve.request import FinishReason, RequestMetrics
from minserve.trace.step import StepTrace
from minserve.trace.totals import RunTotals

Provenance = Literal["measured", "modelled", "recorded"]


@dataclass(frozen=True)
class TraceHeader:
    """Where a trace comes from. Values of `config` are JSON values (numbers, strings, None)."""

    model: str = ""
    """Name of the model, never a path."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration: dotted path -> value."""
    device: str = ""
    """The processor or GPU in words."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version."""
    date: str = ""
    """ISO 8601 day or time of the run."""
    provenance: Provenance = "measured"
    """measured: timed on this machine; modelled: charged by a model of a device; recorded: read
    back from a file of another machine's run."""
    notes: tuple[str, ...] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Dotted path -> the value that was asked for, where the resolved one differs from it."""


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """One sample that ended, and its timings."""

    request_id: str
    sample_index: int
    finish_reason: FinishReason
    metrics: RequestMetrics


@dataclass(frozen=True)
class TraceSnapshot:
    """A consistent copy of a trace at one moment."""

    header: TraceHeader
    totals: RunTotals
    steps: tuple[StepTrace, ...]
    """Newest steps, oldest first."""
    requests: tuple[FinishedRequest, ...]
    """Newest finished requests, in the order they finished."""
    max_steps: int
    """Most steps that the trace keeps."""
    max_requests: int
    """Most finished requests that the trace keeps."""

    @property
    def is_complete(self) -> bool:
        """True if no request was left when the newest step ended.

        False before the first step, while requests run or wait, and if the run was stopped then.
        """
        if not self.steps:
            return False
        newest = self.steps[-1]
        return not newest.num_running and not newest.num_waiting
