"""The trace of a run: one `StepTrace` per engine step, collected in a `RunTrace`.

Widgets, metrics, reports, recorded runs and calibration all read this one stream. `parts` has the
fields of a step's trace, a file per room, and says how to add one; `step` puts them together,
`totals` and `tally` add them up. `snapshot` is a trace at one moment, `run` the bounded collection.
`summary` has the usual figures (latencies, throughput), `shares` what KV memory was used for;
`formats` writes and reads files and tables. Knows nothing about how steps are made.
"""

from minserve.trace.formats.reading import TraceFormatError
from minserve.trace.parts.memory import StepBlocks
from minserve.trace.parts.requests import RequestStep
from minserve.trace.parts.speculation import Speculation
from minserve.trace.parts.stages import StageTimes
from minserve.trace.parts.work import StepWork
from minserve.trace.run import RunTrace
from minserve.trace.shares import MemoryShares
from minserve.trace.snapshot import FinishedRequest, TraceHeader, TraceSnapshot
from minserve.trace.step import StepTrace
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
    "Speculation",
    "StageTimes",
    "StepBlocks",
    "StepTrace",
    "StepWork",
    "TraceFormatError",
    "TraceHeader",
    "TraceSnapshot",
]
