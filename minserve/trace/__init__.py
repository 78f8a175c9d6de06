"""Everything a run tells: one `StepTrace` per engine step, collected in a `RunTrace`.

Widgets, metrics, reports, recorded runs and calibration all read this one stream. `step` has the
records, `run` the bounded collection, `summary` the figures people quote, `shares` what KV memory
was good for, `export` and `chrome` the ways out. Knows nothing about how steps are made.
"""

from minserve.trace.export import TraceFormatError
from minserve.trace.run import FinishedRequest, RunTrace, TraceHeader, TraceSnapshot
from minserve.trace.shares import MemoryShares
from minserve.trace.step import RequestStep, StageTimes, StepPages, StepTrace, StepWork
from minserve.trace.summary import Distribution, RunSummary
from minserve.trace.totals import RunTotals

__all__ = [
    "Distribution",
    "FinishedRequest",
    "MemoryShares",
    "RequestStep",
    "RunSummary",
    "RunTotals",
    "RunTrace",
    "StageTimes",
    "StepPages",
    "StepTrace",
    "StepWork",
    "TraceFormatError",
    "TraceHeader",
    "TraceSnapshot",
]
