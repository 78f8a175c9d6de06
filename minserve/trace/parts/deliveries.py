"""What a step gave to its samples, and how long they had waited for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.trace.parts.totalling import summed


@dataclass(frozen=True, init=False, repr=False, eq=False)
class StepDeliveries:
    """Flat fields of a step: waits that ended with it.

    In seconds of the engine's clock, until the step's results arrived. They are kept without
    `TraceConfig.per_request` too: nearly all samples of a batch had their last token at the same
    time, so one value and a count stand for all of them.
    """

    __slots__ = ()

    num_prompt_tokens: int = field(default=0, metadata=summed("prompt_tokens"))
    """Prompt tokens of the samples that got their first token."""
    ttft_s: tuple[float, ...] = ()
    """Time to first token, from arrival, of each sample that got its first one."""
    itl_s: tuple[float, ...] = ()
    """Inter-token latencies: times since the last step that gave a sample tokens. Each value
    once; a step that gives a sample several tokens counts once."""
    itl_counts: tuple[int, ...] = ()
    """How many samples had waited that long, for each of `itl_s`."""
