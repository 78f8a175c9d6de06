"""Where the chapters' files lie: questions, exercises, solutions, recordings, figures.

In a checkout they are in `labs/`, and a reader may have changed them there; an installed package
carries a copy of its own, so that a chapter runs wherever it is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

FOLDERS = ("questions", "exercises", "solutions", "recorded", "figures")
"""What chapters read of `labs/`, and what an installed package carries of it."""

_PACKAGE = Path(__file__).resolve().parents[1]


def checkout_directory() -> Path | None:
    """The checkout that the notebook lies in, or else the one that this file lies in, or None."""
    around = (folder for start in _starts() for folder in (start, *start.parents))
    for folder in (*around, _PACKAGE.parent):
        if _holds(folder / "labs", "questions", "exercises"):
            return folder
    return None


def labs_directory() -> Path:
    """`labs/` of the checkout, or the installed copy. Raises FileNotFoundError, in a sentence."""
    checkout = checkout_directory()
    if checkout is not None:
        return checkout / "labs"
    installed = _PACKAGE / "labs"
    if not _holds(installed, *FOLDERS):
        raise FileNotFoundError(
            "the chapters' questions, exercises and recordings are neither in a labs/ folder at or "
            f"above {' or '.join(map(str, _starts()))} nor in {installed}: open the chapter "
            'inside a checkout of minserve, or say pip install ".[lab]" in one'
        )
    return installed


def _starts() -> Iterator[Path]:
    """The folders to look upward from: the current one, then that of the notebook."""
    with suppress(OSError):  # The current folder may have been removed.
        yield Path.cwd()
    # Jupyter's name for the notebook of a kernel, whatever `%cd` has done since.
    if session := os.environ.get("JPY_SESSION_NAME"):
        notebook = Path(session)
        if notebook.is_absolute():
            yield notebook.parent


def _holds(labs: Path, *folders: str) -> bool:
    # Unlike Path.is_dir, False for a folder that may not be entered.
    return all(os.path.isdir(labs / name) for name in folders)
