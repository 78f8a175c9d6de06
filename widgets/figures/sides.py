"""What figures take: one run, or named runs side by side, each as a snapshot with its colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from minserve.trace import RunTrace, TraceSnapshot
from widgets import theme
from widgets.figures.sampling import note
from widgets.provenance import Provenance, workload_of

Run = RunTrace | TraceSnapshot


@dataclass(frozen=True)
class Twin:
    """Another run of one of the figure's sides, such as what a GPU recorded of it: drawn in that
    side's colour, with the dash of its own provenance."""

    of: str
    """Name of the side."""
    run: Run


Runs = Run | Mapping[str, Run | Twin]


@dataclass(frozen=True)
class Side:
    """One run of a figure: its name, what it told, how it is drawn."""

    name: str
    """"" where the figure shows a single run."""
    key: str
    """"A", "B", ..."""
    run: TraceSnapshot
    is_twin: bool = False

    @property
    def label(self) -> str:
        """The name inside a plot, "" for a single run."""
        return theme.plot_text(self.name)

    @property
    def colour(self) -> str:
        """The side's colour."""
        return theme.SIDES[self.key]

    @property
    def symbol(self) -> str:
        """The side's marker."""
        return theme.SIDE_SYMBOLS[self.key]

    @property
    def pattern(self) -> str:
        """The side's fill pattern."""
        return theme.SIDE_PATTERNS[self.key]

    @property
    def dash(self) -> str:
        """plotly's dash for this run's provenance."""
        return theme.dash(self.run.header.provenance)

    @cached_property
    def origin_s(self) -> float:
        """Zero of the time axis: the first step's start or the first arrival, what was earlier."""
        starts = [step.start_s for step in self.run.steps[:1]]
        arrivals = [request.metrics.arrival_s for request in self.run.requests]
        if self.run.totals.first_start_s is not None and not starts:
            starts = [self.run.totals.first_start_s]
        return min(starts + arrivals, default=0.0)

    def called(self, fallback: str = "the run") -> str:
        """The name for a sentence."""
        return self.name or fallback


def snapshot(run: Run) -> TraceSnapshot:
    """A run as it stands now. Raises TypeError, saying what was expected."""
    if isinstance(run, RunTrace):
        return run.snapshot()
    if isinstance(run, TraceSnapshot):
        return run
    raise TypeError(
        f"expected a RunTrace (such as llm.trace) or a TraceSnapshot, not {type(run).__name__}"
    )


def sides(runs: Runs) -> list[Side]:
    """The runs of a figure, in order. Raises ValueError for an empty mapping, and for the twin of a
    run that is not there."""
    if not isinstance(runs, Mapping):
        return [Side("", "A", snapshot(runs))]
    if not runs:
        raise ValueError("a figure needs at least one run: {'off': trace, 'on': trace}")
    keys = theme.side_keys(name for name, run in runs.items() if not isinstance(run, Twin))
    found = []
    for name, run in runs.items():
        if not isinstance(run, Twin):
            found.append(Side(name, keys[name], snapshot(run)))
        elif run.of in keys:
            found.append(Side(name, keys[run.of], snapshot(run.run), is_twin=True))
        else:
            raise ValueError(
                f"{name!r} is a twin of {run.of!r}, and the runs are {', '.join(keys)}"
            )
    return found


def together(shown: list[Side]) -> list[list[Side]]:
    """The sides that may be compared with each other: the runs themselves, then their twins."""
    groups = [[side for side in shown if side.is_twin == twins] for twins in (False, True)]
    return [group for group in groups if group]


def caption(shown: list[Side], workload: str = "", *notes: str) -> str:
    """The figure's provenance in words, twins after the runs, and notes on what it leaves out."""
    parts = []
    for group in together(shown):
        snapshots = {side.name: side.run for side in group}
        headers = {name: run.header for name, run in snapshots.items()}
        found = Provenance.of(headers, workload or workload_of(snapshots))
        if group[0].is_twin:
            # A twin did what its side did: that is said already.
            found = replace(found, model="", dtype="", seed="", workload="")
        parts.append(found.caption)
    return " ".join([*parts, *filter(None, notes)])


def complete(shown: list[Side]) -> bool:
    """True if every run has ended: only then may a figure say what came out."""
    return all(side.run.is_complete for side in shown)


def told(shown: list[Side], sentence: str) -> str:
    """The takeaway of a figure: "" while one of its runs is not complete."""
    return sentence if complete(shown) else ""


def left_out(shown: Sequence[Side], counts: Sequence[tuple[int, int]], noun: str) -> str:
    """The note on what was left out of each side: (drawn, all) in the order of the sides."""
    if len(set(counts)) == 1:
        return note(*counts[0], noun)
    notes = [note(*each, noun, side.name) for side, each in zip(shown, counts, strict=True)]
    return " ".join(filter(None, notes))


def seconds(shown: list[Side]) -> float:
    """The length of the longest run: the end of an axis of time that all sides share."""
    ends = (side.run.steps[-1].end_s - side.origin_s for side in shown if side.run.steps)
    return max(ends, default=0.0)


def legend_rows(shown: list[Side]) -> int:
    """Rows of the legend above a figure: one for the runs, one for their twins."""
    return len(together(shown))


def axis_title(what: str, unit: str, shown: list[Side]) -> dict[str, str]:
    """Title of an axis of time, which says where its numbers come from."""
    kinds = " and ".join(dict.fromkeys(side.run.header.provenance for side in shown))
    return {"text": theme.plot_text(f"{what} ({unit}, {kinds})")}


def need_detail(shown: list[Side], what: str) -> None:
    """Raise ValueError where a run has steps but no per-request detail."""
    for side in shown:
        if side.run.steps and not any(step.requests for step in side.run.steps):
            raise ValueError(
                f"{what} shows what each step did for each request, and {side.called()} did not "
                'keep that: run with EngineConfig().with_values({"trace.per_request": True})'
            )
