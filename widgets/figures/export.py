"""Figures to files, for readers without a kernel: `make figures` calls `export_svg`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from widgets.figures import LabFigure

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def export_svg(figures: Mapping[str, LabFigure], directory: str | Path) -> list[Path]:
    """Write each figure as `directory/NAME.svg`; returns the paths.

    Takeaway, caption and alternative text are in the image. Needs kaleido and a Chrome or Chromium.
    Raises ValueError for a name that is no file's, RuntimeError where an image cannot be made.
    """
    for name in figures:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"figure name {name!r}: expected letters, digits, dot, dash and underscore, such "
                "as '00_recompute_triangle'"
            )
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    with _one_browser():
        for name, figure in figures.items():
            path = target / f"{name}.svg"
            figure.svg(path)
            written.append(path)
    return written


@contextmanager
def _one_browser() -> Iterator[None]:
    """One browser for all images: starting it takes longer than drawing."""
    try:
        import kaleido
    except ImportError:
        # The first figure says what is missing.
        yield
        return
    kaleido.start_sync_server(silence_warnings=True)
    try:
        yield
    finally:
        kaleido.stop_sync_server(silence_warnings=True)
