"""An exception in a reader's code, in a sentence: the call, the line, and what exists instead of a
name that does not.
"""

from __future__ import annotations

import builtins
import difflib
import linecache
import os
import traceback
from collections.abc import Iterable
from types import FrameType
from typing import Any

from minserve.inputs.wording import with_article
from widgets.panels.exercises.asked import RaisedError
from widgets.panels.exercises.returns import shortened, text_of


def raised(error: RaisedError, solution: Any) -> str:
    """What happened in the reader's code."""
    cause = error.error
    frame, line = _own_line(cause, solution)
    where = _place(frame, line)
    start = f"`{error.words}` stopped{where}"
    if isinstance(cause, AttributeError) and cause.name:
        return f"{start}: {_attribute(cause, frame)}"
    if isinstance(cause, UnboundLocalError):
        return f"{start}: {cause}. Give it a value on every way that leads there"
    if isinstance(cause, NameError) and cause.name:
        return f"{start}: {_name(cause, frame)}"
    if isinstance(cause, RecursionError):
        return f"{start}: the function calls itself without end"
    if isinstance(cause, SystemExit):
        return f"{start}: exit() ends the program; use `return`"
    said = text_of(cause)
    text = shortened(said)[1:-1] if said else ""
    return f"{start} with {with_article(type(cause).__name__)}" + (f": {text}" if text else "")


def stuck_at(frame: FrameType | None, solution: Any) -> str:
    """in line 3 (`while True:`): where a thread was when its time was over; "" if unknown."""
    while frame is not None:
        if _is_own(frame.f_code.co_filename, solution):
            return _place(frame, frame.f_lineno)
        frame = frame.f_back
    return ""


def _own_line(error: BaseException, solution: Any) -> tuple[FrameType | None, int]:
    """The innermost line of the reader's own code; libraries it called are left out."""
    found: tuple[FrameType | None, int] = None, 0
    for frame, line in traceback.walk_tb(error.__traceback__):
        if _is_own(frame.f_code.co_filename, solution):
            found = frame, line
    return found


def _is_own(filename: str, solution: Any) -> bool:
    code = getattr(solution, "__code__", None)
    if code is not None and filename == code.co_filename:
        return True
    # A cell of a notebook: known to linecache, and no file on the disk.
    return filename in linecache.cache and not os.path.exists(filename)


def _place(frame: FrameType | None, line: int) -> str:
    if frame is None or not line:
        return ""
    text = linecache.getline(frame.f_code.co_filename, line).strip()
    return f" in line {line}" + (f" (`{shortened(text)[1:-1]}`)" if text else "")


def _attribute(error: AttributeError, frame: FrameType | None) -> str:
    obj = error.obj
    if obj is None:
        return f"{error}: something before the dot is None"
    names = [name for name in dir(obj) if not name.startswith("_")]
    called = next((n for n, v in (frame.f_locals if frame else {}).items() if v is obj), "")
    what = f"`{called}`" if called else with_article(type(obj).__name__)
    return f"{what} has no `{error.name}`; {_instead(error.name, names, 'it has')}"


def _name(error: NameError, frame: FrameType | None) -> str:
    local = [name for name in (frame.f_locals if frame else {}) if not name.startswith("_")]
    further = [*(frame.f_globals if frame else {}), *dir(builtins)]
    return f"there is no `{error.name}`; {_instead(error.name, local, 'here are', further)}"


def _instead(
    name: str | None, names: Iterable[str], intro: str, further: Iterable[str] = ()
) -> str:
    known = list(names)
    close = difflib.get_close_matches(name or "", [*known, *further], n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    if not known:
        return "is it defined in a cell that has not run?"
    shown = [f"`{each}`" for each in known[:12]]
    return f"{intro} {', '.join(shown)}" + (", ..." if len(known) > 12 else "")
