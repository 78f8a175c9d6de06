"""The fields of a step's trace, one file per room.

A part is a frozen data class. `stages`, `work` and `blocks` are parts with a name of their own:
`step.work.flops`. The other counters are flat, `step.num_running`: their parts are base classes of
`StepTrace`. These base classes are never built on their own, so they have no methods of a data
class (`init=False`, ...). The metadata of a field says whether it is summed over a run (`summed`)
or its largest value is kept (`peak`). Columns of JSON and data frames, and the totals, are made
from the fields.

To add a part, for example the counts of speculative decoding, write one file,
`parts/speculation.py`:

    @dataclass(frozen=True, slots=True)
    class Speculation:
        proposed_tokens: int = field(default=0, metadata=summed())
        accepted_tokens: int = field(default=0, metadata=summed())

and one line in `RoomParts` below:

    speculation: Speculation = Speculation()

Then the engine can pass `StepTrace(..., speculation=Speculation(4, 3))`. `step.speculation` has the
counts of one step and `RunTrace.totals.speculation` the counts of the run, in the same class, so
that a property such as an acceptance rate works for both. JSON and data frames have the columns,
and reading an older trace gives the defaults. Every field of such a part needs the default 0 and a
total, and its name must differ from all other columns.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class RoomParts:
    """The registry: parts that both `StepTrace` and `RunTotals` have, one line each.

    In a step, a part has the step's counts; in the totals, their sums and peaks.
    """

    __slots__ = ()
