"""When a step ran, and its seconds by stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.trace.parts.totalling import summed


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of one step by stage."""

    schedule_s: float = field(default=0.0, metadata=summed())
    """Deciding which requests compute how many tokens, and reserving pages."""
    transfer_s: float = field(default=0.0, metadata=summed())
    """Copies of pages, also between tiers: a part of `schedule_s`. On a GPU, only queueing them."""
    prepare_s: float = field(default=0.0, metadata=summed())
    """Building the batch's tensors."""
    forward_s: float = field(default=0.0, metadata=summed())
    """Decoder layers (attention included) and logits."""
    attention_s: float = field(default=0.0, metadata=summed())
    """Attention's part of `forward_s`, including rotation and storing into pages. 0 on a GPU and in
    a replayed step, because it is not timed separately there."""
    sample_s: float = field(default=0.0, metadata=summed())
    """Drawing tokens from logits, including the wait for the device."""
    commit_s: float = field(default=0.0, metadata=summed())
    """Giving tokens to requests: stop conditions, text, freed pages."""
    compile_s: float = field(default=0.0, metadata=summed())
    """The part of `forward_s` spent on compiling or capturing graphs: the first
    step of its kind."""


@dataclass(frozen=True, init=False, repr=False, eq=False)
class StepTiming:
    """Flat fields of a step: its number and its times."""

    __slots__ = ()

    index: int
    start_s: float
    """Seconds of the engine's clock."""
    end_s: float
    stages: StageTimes

    @property
    def duration_s(self) -> float:
        """Seconds from start to end."""
        return self.end_s - self.start_s
