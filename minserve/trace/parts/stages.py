"""When a step ran, and its seconds by stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from minserve.trace.parts.totalling import summed


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of one step by stage."""

    schedule_s: float = field(default=0.0, metadata=summed())
    """Deciding which requests compute how many tokens, pages included."""
    transfer_s: float = field(default=0.0, metadata=summed())
    """Copies of pages, between tiers too: a part of `schedule_s`. On a GPU only queueing them."""
    prepare_s: float = field(default=0.0, metadata=summed())
    """Building the batch's tensors."""
    forward_s: float = field(default=0.0, metadata=summed())
    """Decoder layers (attention included) and logits."""
    attention_s: float = field(default=0.0, metadata=summed())
    """Attention's part of `forward_s`, rotation and the store into pages included; 0 on a GPU
    and in a replayed step, where it is not timed apart."""
    sample_s: float = field(default=0.0, metadata=summed())
    """Logits to tokens, the wait for the device included."""
    commit_s: float = field(default=0.0, metadata=summed())
    """Tokens to requests: stop conditions, text, freed pages."""
    compile_s: float = field(default=0.0, metadata=summed())
    """The part of `forward_s` that compiled, or captured graphs: the first step of its kind."""


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
