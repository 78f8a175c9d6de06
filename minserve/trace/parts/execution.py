"""How a step was run: rows computed in addition to its tokens, and graphs."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.trace.parts.totalling import summed


@dataclass(frozen=True, init=False, repr=False, eq=False)
class StepExecution:
    """Flat fields of a step: rows whose results are dropped, and compiled graphs."""

    __slots__ = ()

    num_padded_rows: int = field(default=0, metadata=summed("padded_rows"))
    """Rows computed in addition to the tokens, whose results are dropped; `work`
    counts them too."""
    num_compiled_graphs: int = field(default=0, metadata=summed("compiled_graphs"))
    """Graphs that were compiled in this step, or read from torch's cache, or captured."""
    num_cached_graphs: int = field(default=0, metadata=summed("cached_graphs"))
    """Of those, graphs whose machine code was found in torch's cache on disk."""
    num_discarded_tokens: int = field(default=0, metadata=summed("discarded_tokens"))
    """Tokens computed in addition to `num_tokens`, for requests that ended while the step was in
    flight; `work` counts them too."""
