"""The fields of a step's trace, one file per room.

A part is a frozen data class. `stages`, `work` and `blocks` are parts with a name of their own:
`step.work.flops`. The other counters are flat, `step.num_running`: their parts are base classes of
`StepTrace`. These base classes are never built on their own, so they have no methods of a data
class (`init=False`, ...). The metadata of a field says whether it is summed over a run (`summed`)
or its largest value is kept (`peak`). Columns of JSON and data frames, and the totals, are made
from the fields.

A part is one file, such as `parts/speculation.py`, and one line in `RoomParts` below. The engine
passes `StepTrace(..., speculation=Speculation(1, (1, 1), (1, 0)))`; then `step.speculation` has the
counts of one step and `RunTrace.totals.speculation` the counts of the run, in the same class, so
that a property such as an acceptance rate works for both. JSON and data frames have the columns,
and reading an older trace gives the defaults. Every field of such a part is a number with the
default 0, or numbers by some index (`tuple[int, ...]`) with the default (); it has a total, and a
name that differs from all other columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from minserve.trace.parts.speculation import NO_SPECULATION, Speculation


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class RoomParts:
    """The registry: parts that both `StepTrace` and `RunTotals` have, one line each.

    In a step, a part has the step's counts; in the totals, their sums and peaks.
    """

    __slots__ = ()

    speculation: Speculation = NO_SPECULATION
