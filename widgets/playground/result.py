"""What a run of the playground found: each side's runs, pairs with the base, what was cut.

Plain data. Verdicts are those of `widgets.panels.comparison`. Knows nothing about widgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minserve.bench.compare.setup import Setup
from minserve.trace import RunTrace
from widgets import theme
from widgets.metrics import METRICS, Metric
from widgets.panels.base import Refusal
from widgets.panels.comparison.result import (
    Agreement,
    CompareResult,
    Counts,
    identical_tokens,
    measure,
)
from widgets.panels.comparison.sides import SideRun

LIMIT_S = 20.0
"""Most seconds of one run of one side, on the wall clock even when time is modelled."""


@dataclass(frozen=True)
class PlayResult:
    """One comparison of the playground. Nothing is quoted of a side that was cut."""

    setup: Setup
    workload: str
    """In words."""
    rate_per_s: float | None
    """Arrivals; None where everything waits at the start."""
    runs: Mapping[str, tuple[SideRun, ...]]
    """Sides that ran to their end -> their rounds."""
    cut: Mapping[str, RunTrace] = field(default_factory=dict)
    """Sides that were cut -> what they had done by then."""
    pairs: Mapping[str, CompareResult] = field(default_factory=dict)
    """Variant -> the base against it."""
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Side -> what was settled for it."""
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Side -> what it wrote, for the reader's own prompts."""

    @property
    def modelled(self) -> bool:
        """True on the virtual clock."""
        return self.setup.clock == "virtual"

    @property
    def traces(self) -> dict[str, RunTrace]:
        """The run to show of each side: a variant's is the one that is quoted beside the base."""
        found: dict[str, RunTrace] = {}
        for name, runs in self.runs.items():
            pair = self.pairs.get(name)
            if name == self.setup.base_name and self.pairs:
                pair = next(iter(self.pairs.values()))
            found[name] = pair.traces[name] if pair else runs[len(runs) // 2].trace
        return found

    @property
    def counts(self) -> dict[str, Counts]:
        """What the engine counted, for sides that ran to their end."""
        return {name: Counts.of(trace) for name, trace in self.traces.items()}

    def cut_sentences(self) -> list[str]:
        """What is said of sides that were cut; the counts are of an unfinished run."""
        said = []
        for name, trace in self.cut.items():
            totals = trace.totals
            # Those under way were aborted, which is an end too.
            ended = [each for each in trace.requests if each.finish_reason != "abort"]
            done = theme.format_count(len(ended), "request")
            said.append(
                f"“{name}” was cut after {LIMIT_S:g} seconds. Counted so far, in an unfinished "
                f"run: {theme.format_count(totals.steps, 'step')}, {done} finished. Nothing is "
                "quoted of it: choose fewer or shorter requests, or the virtual clock."
            )
        return said

    def facts(self) -> dict[str, Any]:
        """What is the same on every machine: lengths, and where no request depends on when another
        arrived, what was counted; on the virtual clock its seconds."""
        found: dict[str, Any] = {}
        steady = self.modelled or self.rate_per_s is None
        for name, trace in self.traces.items():
            counts = Counts.of(trace)
            found[f"{name}: requests (counted)"] = counts.requests
            found[f"{name}: tokens in (counted)"] = counts.prompt_tokens
            found[f"{name}: tokens out (counted)"] = counts.output_tokens
            if not steady:
                continue
            found[f"{name}: engine steps (counted)"] = counts.steps
            found[f"{name}: tokens computed (counted)"] = counts.computed_tokens
            found[f"{name}: KV bytes allocated, peak (counted)"] = counts.peak_kv_bytes_allocated
            if self.modelled:
                seconds = round(trace.totals.duration_s, 6)
                found[f"{name}: virtual seconds (modelled)"] = seconds
        return found


def pair_of(
    setup: Setup,
    variant: str,
    runs: Mapping[str, Sequence[SideRun]],
    metrics: Sequence[Metric],
    rate_per_s: float | None,
) -> CompareResult:
    """The base against one variant. Raises Refusal where the runs do not have the headline."""
    names = (setup.base_name, variant)
    sides = {name: runs[name] for name in names}
    modelled = setup.clock == "virtual"
    if modelled:
        agreement = Agreement(None, "No tokens are computed on the virtual clock.")
    else:
        both = zip(sides[names[0]], sides[variant], strict=True)
        agreement = identical_tokens([(a.tokens, b.tokens) for a, b in both])
    measured = measure(metrics, sides, exact=modelled)
    headline = METRICS[setup.headline]
    if setup.headline not in measured:
        raise Refusal(
            f"these runs say nothing about {headline.label}: choose another quantity for the "
            "verdict, or a workload with more requests and tokens"
        )
    base, other = (setup.config(name).to_dict() for name in names)
    middle = measured[setup.headline].middle
    return CompareResult(
        sides=names,
        changed={path: (base[path], other[path]) for path in base if base[path] != other[path]},
        rounds=len(sides[variant]),
        headline=setup.headline,
        metrics=measured,
        agreement=agreement,
        traces={name: side[middle].trace for name, side in sides.items()},
        rate_per_s=rate_per_s,
        provenance="modelled" if modelled else "measured",
    )
