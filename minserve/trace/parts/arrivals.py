"""Prompts that came since the step before: how many, and how far apart."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.trace.parts.totalling import summed


@dataclass(frozen=True, init=False, repr=False, eq=False)
class StepArrivals:
    """Flat fields of a step: arrivals, of refused prompts too (`StepScheduling.num_refused`), but
    not of those that could never be served."""

    __slots__ = ()

    num_arrived: int = field(default=0, metadata=summed("arrived"))
    """Prompts that arrived since the step before."""
    interarrival_s: tuple[float, ...] = ()
    """Seconds between each of these arrivals and the one before it; the first one of an engine has
    none before it. 0 for one that says it arrived earlier than the one before."""
