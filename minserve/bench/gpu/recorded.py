"""Reads results that were recorded on a GPU: for chapters, panels and the virtual clock.

Nothing replaces a missing recording: the error says "not yet recorded".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minserve.bench.gpu.report import NOT_YET
from minserve.bench.modelling.fitted_cost import FittedCost
from minserve.files.json_file import FileError, read_json
from minserve.trace import RunTrace, TraceFormatError


class NotRecordedError(LookupError):
    """This was not run on a GPU yet. The message says which command would record it."""


class DamagedRecordingError(ValueError):
    """There is a file, but it is not a recording. The message says what is wrong and what to do."""


def folder_of(labs: str | Path) -> Path:
    """The folder of a checkout's recordings, given its `labs` directory."""
    return Path(labs) / "recorded" / "gpu"


def trace_path(folder: Path, chapter: str, side: str) -> Path:
    """The file of one side of a chapter's comparison."""
    return folder / f"chapter-{chapter}-{side}.json.gz"


def chapter_trace(folder: Path, chapter: str, side: str) -> RunTrace:
    """One side of a chapter's comparison as it ran on a GPU. Its header says `recorded`, so that
    figures draw it dotted and name the device. Raises NotRecordedError, and DamagedRecordingError
    for a file that is something else."""
    path = trace_path(folder, chapter, side)
    if not path.exists():
        raise NotRecordedError(_sentence(f"chapter {chapter}, side {side!r}", "chapters"))
    try:
        trace = RunTrace.from_json(path)
    except (TraceFormatError, OSError) as error:
        raise DamagedRecordingError(_damaged(path, error, "chapters")) from None
    if trace.header.provenance != "recorded":
        what = f"it holds a run that was {trace.header.provenance}, not recorded"
        raise DamagedRecordingError(_damaged(path, what, "chapters"))
    return trace


def chapter_traces(folder: Path, chapter: str, sides: Sequence[str]) -> dict[str, RunTrace]:
    """Both sides of a comparison, by name. Raises as `chapter_trace`, and DamagedRecordingError if
    the sides are from two devices, because that compares devices instead of the switch."""
    found = {side: chapter_trace(folder, chapter, side) for side in sides}
    devices = sorted({trace.header.device for trace in found.values()})
    if len(devices) > 1:
        path = trace_path(folder, chapter, sides[0])
        what = f"the sides are of {len(devices)} devices, {' and '.join(devices)}"
        raise DamagedRecordingError(_damaged(path, what, "chapters"))
    return found


def recorded_chapters(folder: Path) -> list[str]:
    """The chapters of which something was recorded ("45a"), in order; the files are not read."""
    names = (path.name.removeprefix("chapter-") for path in folder.glob("chapter-*.json.gz"))
    return sorted({name.partition("-")[0] for name in names})


def cost_path(folder: Path, shape: str) -> Path:
    """The file of the calibrated cost of one model shape."""
    return folder / f"cost-{shape}.json"


def step_cost(folder: Path, shape: str) -> FittedCost:
    """The recorded cost of a step of this shape on a GPU: for `build_virtual_engine`. Raises
    NotRecordedError, and DamagedRecordingError for a file that is something else."""
    path = cost_path(folder, shape)
    if not path.exists():
        raise NotRecordedError(_sentence(f"the cost of a step of {shape}", "virtual_clock"))
    try:
        return FittedCost.from_dict(read_json(path, what="a calibration"))
    except FileError as error:
        said = str(error).removeprefix(f"{path} cannot be read as a calibration: ").rstrip(".")
        raise DamagedRecordingError(_damaged(path, said, "virtual_clock")) from None
    except ValueError as error:
        raise DamagedRecordingError(_damaged(path, error, "virtual_clock")) from None


def _damaged(path: Path, what: object, part: str) -> str:
    # The system's message contains the whole path, which is private.
    said = what.strerror if isinstance(what, OSError) else what
    return (
        f"{path.name} cannot be used: {said}. `make gpu PARTS={part} ARGS=--fresh` on a machine "
        "with a GPU records it again"
    )


def _sentence(what: str, part: str) -> str:
    return f"{what} is {NOT_YET}: `make gpu PARTS={part}` on a machine with a GPU records it"
