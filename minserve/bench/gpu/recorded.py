"""Reading back what was recorded on a GPU: for chapters, panels and the virtual clock.

Where nothing was recorded there is no stand-in: the answer is "not yet recorded".
"""

from __future__ import annotations

from pathlib import Path

from minserve.bench.fitted_cost import FittedCost
from minserve.bench.gpu.report import NOT_YET
from minserve.trace import RunTrace


class NotRecordedError(LookupError):
    """Nobody has run this on a GPU yet. The message says what would record it."""


def folder_of(labs: str | Path) -> Path:
    """Where the recordings of a checkout lie, given its `labs` directory."""
    return Path(labs) / "recorded" / "gpu"


def trace_path(folder: Path, chapter: str, side: str) -> Path:
    """The file of one side of a chapter's comparison."""
    return folder / f"chapter-{chapter}-{side}.json.gz"


def chapter_trace(folder: Path, chapter: str, side: str) -> RunTrace:
    """One side of a chapter's comparison as it ran on a GPU; its header says `recorded`, so that
    figures draw it dotted and name the device. Raises NotRecordedError."""
    path = trace_path(folder, chapter, side)
    if not path.is_file():
        raise NotRecordedError(_sentence(f"chapter {chapter}, side {side!r}", "chapters"))
    return RunTrace.from_json(path)


def cost_path(folder: Path, shape: str) -> Path:
    """The file of the calibrated cost of one model shape."""
    return folder / f"cost-{shape}.json"


def step_cost(folder: Path, shape: str) -> FittedCost:
    """What a step of this shape costs on the GPU that was recorded: for `build_virtual_engine`.
    Raises NotRecordedError."""
    path = cost_path(folder, shape)
    if not path.is_file():
        raise NotRecordedError(_sentence(f"the cost of a step of {shape}", "virtual_clock"))
    return FittedCost.from_json(path.read_text(encoding="utf-8"))


def _sentence(what: str, part: str) -> str:
    return f"{what} is {NOT_YET}: `make gpu PARTS={part}` on a machine with a GPU records it"
