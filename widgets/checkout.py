"""Where the chapters lie, with their questions, exercises and recordings."""

from __future__ import annotations

from pathlib import Path


def labs_directory() -> Path:
    """The checkout's `labs/`, or `labs/` below the current directory."""
    checkout = Path(__file__).resolve().parents[1] / "labs"
    return checkout if checkout.is_dir() else Path.cwd() / "labs"
