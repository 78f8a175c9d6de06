"""What a GPU recorded of a chapter's comparison: its traces, or the sentence that says why not.

`make gpu` leaves recordings beside the chapters, with `labs_directory`. They are shown beside a run
of the same work only: same requests, same scheduling and memory. How a device does that work is its
own business. Knows nothing about figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minserve.bench.gpu.recorded import (
    DamagedRecordingError,
    NotRecordedError,
    chapter_traces,
    folder_of,
    recorded_chapters,
)
from minserve.config import EngineConfig
from minserve.trace import RunTrace
from widgets import theme
from widgets.figures.sides import Run, Twin
from widgets.panels import views
from widgets.panels.exercises.exercise import labs_directory

_HOW = ("device", "kernels.backend", "kernels.num_threads", "memory.disk_path")
"""Fields that say on what and with what operators a run computes, not what."""


HOW_TO_RECORD = (
    "`make gpu PARTS=chapters`, on a machine with an NVIDIA GPU and in this checkout, runs the "
    "chapters' comparisons there and writes the results to labs/recorded/gpu. Run a chapter again "
    "to see them: they are drawn dotted, beside the runs of your own machine."
)


class Recordings(views.Displayed):
    """Which chapters have a recording from a GPU, and how to make one, behind a badge.

    `labs` is the directory of the chapters; None for this checkout's.
    """

    def __init__(self, labs: Path | None = None) -> None:
        self.chapters = recorded_chapters(folder_of(labs or labs_directory()))
        self.text = f"GPU recordings: {', '.join(self.chapters) or 'none yet'}"
        self.widget = views.html(views.badge(self.text, HOW_TO_RECORD))

    def __repr__(self) -> str:
        return f"{self.text}. {HOW_TO_RECORD}"


@dataclass(frozen=True)
class Recording:
    """A comparison as a GPU ran it."""

    traces: Mapping[str, RunTrace] = field(default_factory=dict)
    """Side -> trace; empty where there is nothing to show."""
    sentence: str = ""
    """Where it was recorded, or why nothing is shown; "" where nothing is recorded yet, which the
    course says once, in its first chapter."""

    def beside(self, runs: Mapping[str, RunTrace]) -> dict[str, Run | Twin]:
        """The runs of a figure, and each recorded one in the colour of its side."""
        twins = {f"{name}, recorded": Twin(name, trace) for name, trace in self.traces.items()}
        return {**runs, **twins}


def find_recording(
    chapter: str, configs: Mapping[str, EngineConfig], runs: Mapping[str, RunTrace]
) -> Recording:
    """What was recorded for a chapter, where it is of the work that `configs` did in `runs`."""
    names = list(runs)
    try:
        traces = chapter_traces(folder_of(labs_directory()), chapter, names)
    except NotRecordedError:
        return Recording()
    except DamagedRecordingError as error:
        return Recording(sentence=f"What a GPU recorded is not shown: {error}.")
    first = traces[names[0]]
    where = f"{first.header.device}, {first.header.date}"
    for name in names:
        other = _differs(configs[name], runs[name], traces[name])
        if other:
            return Recording(
                sentence=f"Recorded on {where}, for {_work(traces[name])}. These runs have "
                f"{other}, so nothing dotted is drawn beside them."
            )
    return Recording(traces, f"Dotted: recorded on {where}.")


def _differs(config: EngineConfig, run: RunTrace, recorded: RunTrace) -> str:
    """What a run had otherwise than the recorded one, in words; "" for the same work."""
    if _lengths(run) != _lengths(recorded):
        return f"another workload ({_work(run)})"
    had, has = recorded.header.config, run.header.config
    for path, wanted in config.to_dict().items():
        # None is left to the machine, and what is asked for may be put right by `resolve`.
        free = wanted is None or path in _HOW or path.startswith("trace.")
        if not free and path in had and had[path] not in (wanted, has.get(path)):
            return f"{path}={wanted!r}, and it had {had[path]!r}"
    return ""


def _lengths(run: RunTrace) -> Counter[tuple[int, int]]:
    found = (request.metrics for request in run.requests)
    return Counter((each.num_prompt_tokens, each.num_output_tokens) for each in found)


def _work(run: RunTrace) -> str:
    totals = run.totals
    return (
        f"{theme.format_count(totals.finished_requests, 'request')}, "
        f"{theme.format_count(totals.finished_prompt_tokens, 'token')} in, "
        f"{theme.format_count(totals.finished_output_tokens)} out"
    )


def recorded_facts(recording: Recording, metrics: Sequence[Any]) -> dict[str, Any]:
    """The recorded values of some quantities, side by side, or why there are none."""
    if not recording.sentence:
        return {}
    if not recording.traces:
        return {"recorded": recording.sentence}
    found = {"recorded": recording.sentence.removeprefix("Dotted: recorded ")}
    for metric in metrics:
        for name, trace in recording.traces.items():
            value = metric.read(trace)
            if value is not None:
                found[f"{name}, recorded: {metric.label}"] = metric.show(value)
    return found
