"""What a step tells, one file per room.

A part is a frozen data class. `stages`, `work` and `pages` are parts by name: `step.work.flops`.
The other counters are flat, `step.num_running`: their parts are base classes of `StepTrace`. Only
`StepTrace` is ever built from those, so they have no methods of a data class (`init=False`, ...).
The metadata of a field says how it totals over a run (`summed`, `peak`). Columns of JSON and data
frames, and the totals, are made from the fields.

To add a part, say what speculative decoding proposed, write one file, `parts/speculation.py`:

    @dataclass(frozen=True, slots=True)
    class Speculation:
        proposed_tokens: int = field(default=0, metadata=summed())
        accepted_tokens: int = field(default=0, metadata=summed())

and one line in `RoomParts` below:

    speculation: Speculation = Speculation()

Then the engine may pass `StepTrace(..., speculation=Speculation(4, 3))`. `step.speculation` has the
counts of one step and `trace.totals.speculation` those of the run, in the same class, so that a
property such as an acceptance rate serves both. JSON and data frames have the columns, and a trace
that was recorded before reads with the defaults. Every field of such a part needs the default 0 and
a total, and its name must be new among all columns.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class RoomParts:
    """The registry: parts that both `StepTrace` and `RunTotals` have, one line each.

    In a step a part has the step's counts, in the totals their sums and peaks.
    """

    __slots__ = ()
