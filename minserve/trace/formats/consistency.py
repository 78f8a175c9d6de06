"""Compares a trace's totals with its steps and finished requests.

A step column that is missing gets its default when a trace is read, because the trace may be older
than the column; its total is then missing too. A column that was removed from a newer trace is
noticed here, because the trace still has its total.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace

from minserve.trace.snapshot import TraceSnapshot
from minserve.trace.tally import Tally
from minserve.trace.totals import RunTotals

_TOLERANCE = 1e-6
"""Relative, for seconds: another program may add them up in another order."""
_OF_REQUESTS = ("finished_requests", "finished_prompt_tokens", "finished_output_tokens")


def contradiction(trace: TraceSnapshot) -> str | None:
    """In words, the first total that differs from what the rows add up to; None if none does.

    Where the ring dropped rows, their share of the totals is unknown, so nothing is compared.
    """
    told = trace.totals
    if len(trace.steps) >= told.steps:
        tally = Tally()
        for step in trace.steps:
            tally.add_step(step)
        # Finished requests are compared below: all of them may be kept where steps are not.
        counted = replace(tally.totals(), **{name: getattr(told, name) for name in _OF_REQUESTS})
        found = _difference(counted, told, "steps")
        if found is not None:
            return found
    if len(trace.requests) >= told.finished_requests:
        tally = Tally()
        for request in trace.requests:
            tally.add_request(request.metrics)
        counted = replace(told, **{name: getattr(tally, name) for name in _OF_REQUESTS})
        return _difference(counted, told, "finished requests")
    return None


def _difference(counted: RunTotals, told: RunTotals, rows: str) -> str | None:
    ours, theirs = _leaves(counted), _leaves(told)
    for name, value in ours.items():
        if not _same(value, theirs[name]):
            return f"its {rows} give {name} = {value!r}, and its totals say {theirs[name]!r}"
    return None


def _leaves(totals: RunTotals) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name, value in asdict(totals).items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            found[name] = value
    return found


def _same(counted: float | None, told: float | None) -> bool:
    if counted is not None and told is not None and isinstance(counted + told, float):
        return math.isclose(counted, told, rel_tol=_TOLERANCE)
    return counted == told
