"""What a comparison found: pairs of runs, their verdicts, what was counted, what a model says.

Plain data and sentences. `facts()` has only what is the same on every machine and in every run;
wall-clock numbers are in `metrics`. Knows nothing about widgets or about how the runs were made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minserve.hardware import Ceilings, DeviceSpec, roofline
from minserve.trace import RunTrace
from widgets import theme
from widgets.metrics import Metric, peak_allocated_bytes
from widgets.panels.comparison.recording import Recording, recorded_facts
from widgets.panels.comparison.sides import SideRun, Tokens
from widgets.panels.comparison.verdict import Verdict, judge


@dataclass(frozen=True)
class Agreement:
    """Whether the invariant held, in a sentence."""

    held: bool | None
    """None where there was nothing to compare: on the virtual clock no tokens are computed."""
    sentence: str


Invariant = Callable[[Sequence[tuple[Tokens, Tokens]]], Agreement]
"""Takes both sides' tokens of every round."""


def identical_tokens(rounds: Sequence[tuple[Tokens, Tokens]]) -> Agreement:
    """The invariant of a lossless switch: the same token ids, request by request. A request that
    a side refused has none, and is left out."""
    count = lost = 0
    for number, (ours, theirs) in enumerate(rounds):
        if len(ours) != len(theirs):
            return Agreement(False, f"{len(ours)} requests on one side, {len(theirs)} on the other")
        for request, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if not (a and b):
                lost += number == 0
            elif a == b:
                count += len(a) * (number == 0)
            else:
                same = zip(a, b, strict=False)
                place = next((i for i, (x, y) in enumerate(same) if x != y), None)
                where = f"token {place}" if place is not None else "their lengths"
                return Agreement(
                    False,
                    f"tokens differ: in round {number + 1}, request {request}, first at {where}",
                )
    left_out = f"; {theme.format_count(lost, 'refused request')} left out" if lost else ""
    compared = theme.format_count(count, "token")
    return Agreement(True, f"tokens identical: {compared} compared in every round{left_out}")


@dataclass(frozen=True)
class Counts:
    """What the engine counted in one run."""

    steps: int
    requests: int
    refused: int
    prompt_tokens: int
    output_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    preemptions: int
    flops: int
    bytes: int
    peak_kv_bytes_allocated: int
    peak_kv_bytes_used: int

    @classmethod
    def of(cls, trace: RunTrace) -> Counts:
        """The counts of a trace."""
        totals = trace.totals
        return cls(
            steps=totals.steps,
            requests=totals.finished_requests,
            refused=totals.refused,
            prompt_tokens=totals.finished_prompt_tokens,
            output_tokens=totals.sampled_tokens,
            computed_tokens=totals.prefill_tokens + totals.decode_tokens,
            recomputed_tokens=totals.recomputed_tokens,
            preemptions=totals.preemptions,
            flops=totals.flops,
            bytes=totals.bytes,
            peak_kv_bytes_allocated=peak_allocated_bytes(trace),
            peak_kv_bytes_used=totals.peak_kv_bytes_used,
        )

    def words(self) -> dict[str, str]:
        """Name -> value with its unit."""
        refused = {"requests refused": theme.format_count(self.refused)} if self.refused else {}
        return {
            "steps": theme.format_count(self.steps),
            "requests": theme.format_count(self.requests),
            **refused,
            "tokens in": theme.format_count(self.prompt_tokens),
            "tokens out": theme.format_count(self.output_tokens),
            "tokens computed": theme.format_count(self.computed_tokens),
            "of them computed again": theme.format_count(self.recomputed_tokens),
            "preemptions": theme.format_count(self.preemptions),
            "arithmetic": theme.format_flops(self.flops),
            "memory traffic at least": theme.format_bytes(self.bytes),
            "KV allocated, peak": theme.format_bytes(self.peak_kv_bytes_allocated),
            "KV used, peak": theme.format_bytes(self.peak_kv_bytes_used),
        }


@dataclass(frozen=True)
class Measured:
    """One quantity over all rounds."""

    metric: Metric
    values: Mapping[str, tuple[float, ...]]
    """Side -> value of each round."""
    verdict: Verdict
    provenance: str = "measured"
    """measured, counted or modelled."""

    @property
    def middle(self) -> int:
        """The round whose ratio is the median: its values are the ones to quote."""
        ratio = self.verdict.ratio
        return min(range(len(ratio.values)), key=lambda n: abs(ratio.values[n] - ratio.median))

    @property
    def quoted(self) -> dict[str, float]:
        """Side -> its value in that round."""
        return {name: values[self.middle] for name, values in self.values.items()}

    @property
    def short(self) -> str:
        """The verdict in a few words: "7.4x faster", "the same", "no verdict"."""
        verdict = self.verdict
        if verdict.outcome == "unclear":
            return "no verdict"
        if verdict.outcome == "same":
            return "the same" if verdict.exact else "no difference detectable"
        return self.metric.compare(verdict.ratio.median)

    @property
    def spread(self) -> str:
        """From the smallest to the largest factor of a round, in words; "" where all are equal."""
        ratio = self.verdict.ratio
        if self.verdict.exact or ratio.min == ratio.max:
            return ""
        low, high = sorted((ratio.min, ratio.max), key=lambda end: abs(math.log(end)))
        first, second = self.metric.compare(low), self.metric.compare(high)
        if (low > 1) == (high > 1):
            # "2x to 5x faster": the word once.
            first = first.removesuffix(second.partition(" ")[2]).rstrip()
        return f"{first} to {second}"

    def values_sentence(self) -> str:
        """Both sides' values, and how they were found."""
        (first, _), (second, _) = self.values.items()
        shown = {name: self.metric.show(value) for name, value in self.quoted.items()}
        how = self.provenance
        if not self.verdict.exact:
            how += f" in {theme.format_count(len(self.verdict.ratio.values), 'round')}"
        if self.spread:
            how += f", {self.spread}"
        if self.verdict.exact and self.verdict.outcome == "same":
            return f"{self.metric.label}: {shown[first]} on both sides ({how})"
        return (
            f"{self.metric.label}: {shown[second]} with “{second}”, {shown[first]} with “{first}” "
            f"({how})"
        )

    def sentence(self) -> str:
        """The verdict in words, with both sides' values, the spread, and how they were found."""
        *_, second = self.values
        said = {"same": "No difference detectable", "unclear": "No verdict"}
        if self.verdict.exact:
            said["same"] = "The same"
        before = said.get(self.verdict.outcome, f"“{second}”: {self.short}")
        return f"{before}; {self.values_sentence()}"


@dataclass(frozen=True)
class CompareResult:
    """A whole comparison. Side A is the baseline, B the switch."""

    sides: tuple[str, str]
    changed: Mapping[str, tuple[Any, Any]]
    """The fields in which the sides differ: path -> (A, B)."""
    rounds: int
    headline: str
    metrics: Mapping[str, Measured]
    agreement: Agreement
    traces: Mapping[str, RunTrace]
    """The quiet round whose headline ratio is the median: side -> trace."""
    rate_per_s: float | None
    """Arrivals; None where everything waited at the start."""
    provenance: str
    """"measured", or "modelled" on the virtual clock."""
    virtual: Mapping[str, RunTrace] = field(default_factory=dict)
    """The same on a modelled device, where the chapter asked for it: side -> trace."""
    recording: Recording | None = None
    """The same as a GPU recorded it, where the chapter asked for it."""

    @property
    def verdict(self) -> Verdict:
        """Of the headline."""
        return self.metrics[self.headline].verdict

    @property
    def counts(self) -> dict[str, Counts]:
        """Of the runs in `traces`."""
        return {name: Counts.of(trace) for name, trace in self.traces.items()}

    def sentence(self, metric: str = "") -> str:
        """The verdict on a metric (the headline) in words."""
        return self.metrics[metric or self.headline].sentence()

    @property
    def certain(self) -> list[Measured]:
        """What any machine would say of these runs: the counts that differ, largest factor first,
        and the headline as modelled, where it was."""
        counted = [
            each
            for each in self.metrics.values()
            if each.verdict.exact and each.verdict.outcome != "same" and each.metric.counted
        ]
        counted.sort(key=lambda each: -abs(math.log(each.verdict.ratio.median)))
        found = self.metrics[self.headline].metric
        if not self.virtual:
            return counted
        values = {name: found.read(trace) for name, trace in self.virtual.items()}
        if any(value is None or value <= 0 for value in values.values()):
            return counted
        pairs = {name: (value or 0.0,) for name, value in values.items()}
        verdict = judge(*pairs.values(), found.better, exact=True)
        return [Measured(found, pairs, verdict, "modelled"), *counted]

    def modelled_s(self, limits: DeviceSpec | Ceilings, dtype: str) -> dict[str, float]:
        """Least seconds of each side's own steps on a device: the sum of their rooflines.

        Raises ValueError where the limits say nothing about `dtype`.
        """
        return {
            name: sum(roofline(step.work, limits, dtype).bound_s for step in trace.steps)
            for name, trace in self.traces.items()
        }

    def facts(self) -> dict[str, Any]:
        """What is the same on every machine: for cells whose output is compared.

        Counts are among them where no request depends on when another arrived: everything waited at
        the start, or the clock is virtual.
        """
        found: dict[str, Any] = {}
        if self.agreement.held is not None:
            found["invariant held"] = self.agreement.held
        for name, trace in self.traces.items():
            counts = Counts.of(trace)
            found[f"{name}: requests"] = counts.requests
            found[f"{name}: tokens in"] = counts.prompt_tokens
            found[f"{name}: tokens out"] = counts.output_tokens
        virtual = self.traces if self.provenance == "modelled" else self.virtual
        if self.rate_per_s is None and not virtual:
            for name, trace in self.traces.items():
                found |= _counted(name, trace)
        for name, trace in virtual.items():
            header = trace.header
            # Beside the requests of the model that ran, another model's counts say whose they are.
            who = name if virtual is self.traces else f"{name}, {header.model} on {header.device}"
            found |= _counted(who, trace)
            found[f"{who}: virtual seconds"] = round(trace.totals.duration_s, 6)
        if self.recording is not None:
            found |= recorded_facts(self.recording, [self.metrics[self.headline].metric])
        return found


def _counted(name: str, trace: RunTrace) -> dict[str, Any]:
    counts = Counts.of(trace)
    # Said only where it can happen.
    refused = {f"{name}: requests refused": counts.refused} if counts.refused else {}
    return refused | {
        f"{name}: steps": counts.steps,
        f"{name}: preemptions": counts.preemptions,
        f"{name}: tokens computed again": counts.recomputed_tokens,
        f"{name}: FLOPs": counts.flops,
        f"{name}: bytes moved at least": counts.bytes,
        f"{name}: KV bytes allocated, peak": counts.peak_kv_bytes_allocated,
        f"{name}: KV bytes used, peak": counts.peak_kv_bytes_used,
    }


def measure(
    metrics: Sequence[Metric], rounds: Mapping[str, Sequence[SideRun]], *, exact: bool
) -> dict[str, Measured]:
    """Every metric that both sides have in every round, with its verdict.

    `exact` says that time is modelled, so that any difference counts. Counted metrics are compared
    exactly only where they came out equal in every round of a side.
    """
    found = {}
    for metric in metrics:
        values = {name: [metric.read(run.trace) for run in runs] for name, runs in rounds.items()}
        if any(value is None or value <= 0 for side in values.values() for value in side):
            continue
        first, second = ([float(v or 0) for v in side] for side in values.values())
        steady = metric.counted and len(set(first)) == len(set(second)) == 1
        verdict = judge(first, second, metric.better, exact=exact or steady)
        pairs = {name: tuple(v or 0.0 for v in side) for name, side in values.items()}
        provenance = "counted" if metric.counted else "modelled" if exact else "measured"
        found[metric.name] = Measured(metric, pairs, verdict, provenance)
    return found
