"""The chapters' comparisons, run on this device: figures of every round, and a trace of each side,
which a panel draws dotted beside the measurements of the reader's machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from minserve.bench.gpu.cases.chapter_runs import CHAPTERS, ChapterRun
from minserve.bench.gpu.engines import Bench
from minserve.bench.gpu.recorded import trace_path
from minserve.bench.gpu.setting import Setting
from minserve.bench.interleave import Spread, pairwise_ratio
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length
from minserve.loading import load_model
from minserve.trace import Distribution, RunTrace, StepTrace

ROUNDS = 3


def _figure(name: str, part: str) -> Callable[[RunTrace], float | None]:
    """One number of a run's summary; None if the run has no such number."""

    def read(trace: RunTrace) -> float | None:
        found: Distribution | None = getattr(trace.summary(), name)
        return None if found is None else getattr(found, part)

    return read


_READ: dict[str, Callable[[RunTrace], Any]] = {
    "output_tokens_per_s": lambda trace: trace.summary().output_tokens_per_s,
    "duration_s": lambda trace: trace.totals.duration_s,
    "tpot_p50_s": _figure("tpot_s", "p50"),
    "e2e_p50_s": _figure("e2e_s", "p50"),
    "e2e_mean_s": _figure("e2e_s", "mean"),
    "itl_max_s": _figure("itl_s", "max"),
}
"""Figure -> how to read it from a trace; these are measured, so they have a spread."""
_COUNTED = (
    "steps",
    "preemptions",
    "padded_rows",
    "loaded_tokens",
    "peak_kv_bytes_allocated",
    "peak_running",
)


def run(setting: Setting) -> None:
    """A row per chapter, and two trace files."""
    for chapter in CHAPTERS:
        if setting.time_for(f"chapter {chapter.chapter}", 5.0):
            setting.record.add(_measure(setting, chapter))


def _measure(setting: Setting, chapter: ChapterRun) -> dict[str, Any]:
    traffic = chapter.workload()
    switches = [{}, dict(chapter.switch)]
    if setting.dry_run:
        few = [one.prompt_token_ids for one in traffic.requests[:3]]
        traffic = at_once(few, [fixed_length(4)] * 3)
        # Triton is interpreted in a separate part.
        switches = [values | {"kernels.backend": "torch"} for values in switches]
    device = {"device": str(setting.device), "trace.per_request": True}
    sides: dict[str, Bench] = {}
    try:
        for name, switch in zip(chapter.names, switches, strict=True):
            config = chapter.base.with_values(device | switch)
            sides[name] = Bench(setting, load_model("zoo/base", config, progress=False))
        return _compare(setting, chapter, sides, traffic)
    finally:
        for bench in sides.values():
            bench.__exit__()


def _compare(
    setting: Setting, chapter: ChapterRun, sides: Mapping[str, Bench], traffic: Traffic
) -> dict[str, Any]:
    tokens: dict[str, list[list[int]]] = {}

    def play(name: str) -> RunTrace:
        trace, result, _ = sides[name].play(traffic)
        tokens[name] = [request.output_token_ids for request in result.requests]
        return trace

    calls = {name: partial(play, name) for name in sides}
    for call in calls.values():
        call()  # Compiles.

    rounds = setting.pick(ROUNDS, 1)
    traces = setting.take_turns(calls, rounds, f"chapter {chapter.chapter}")
    for name, each in traces.items():
        _keep(each[-1], trace_path(setting.folder, chapter.chapter, name), setting.record.data)
    first, second = chapter.names
    rates = {name: [_READ["output_tokens_per_s"](t) for t in each] for name, each in traces.items()}
    return {
        "name": chapter.chapter,
        "switch": dict(chapter.switch),
        "requests": len(traffic.requests),
        "sides": {name: _figures(each) for name, each in traces.items()},
        "ratio": vars(pairwise_ratio(rates[second], rates[first])),
        "same_tokens": tokens[first] == tokens[second],
    }


def _figures(traces: list[RunTrace]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, read in _READ.items():
        values = [read(trace) for trace in traces]
        found[name] = None if None in values else vars(Spread.of(values))
    totals = traces[-1].totals
    return found | {name: getattr(totals, name) for name in _COUNTED}


def _keep(trace: RunTrace, path: Path, where: Mapping[str, Any]) -> None:
    """A small file: everything except which request held which pages."""
    versions = {**trace.header.versions} | {"commit": where["commit"] or "unknown"}
    header = dataclasses.replace(trace.header, provenance="recorded", versions=versions)
    small = RunTrace(trace.max_steps, trace.max_requests, header)
    steps = [_without_blocks(step) for step in trace.steps]
    small.restore(trace.totals, steps, trace.requests)
    small.to_json(path)


def _without_blocks(step: StepTrace) -> StepTrace:
    # Tokens per request and step are kept: a chapter draws the gaps between them.
    requests = tuple(dataclasses.replace(part, blocks=()) for part in step.requests)
    return dataclasses.replace(step, requests=requests, cached_block_ids=())
