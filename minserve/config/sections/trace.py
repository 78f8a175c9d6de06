"""The section of `EngineConfig` about what a run records of its steps."""

from __future__ import annotations

from dataclasses import dataclass

from minserve.config.knobs import Section, knob


@dataclass(frozen=True)
class TraceConfig(Section):
    """What a run records of its steps."""

    max_steps: int = knob(
        100_000,
        "Newest steps kept in the trace.",
        unit="steps",
        trade_off="about a kilobyte per step without detail",
        at_least=1,
        at_most=1 << 40,
    )
    per_request: bool = knob(
        False,
        "Keep what each step did for each request.",
        trade_off="timelines and replay against memory and a few microseconds per request",
    )
    pages: bool = knob(
        False,
        "Keep which pages each request held. Has an effect only where per_request is on.",
        trade_off="the page map against memory",
    )
