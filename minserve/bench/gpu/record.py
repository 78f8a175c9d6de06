"""The file of a part of `make gpu`: small JSON, rewritten after every row and always complete.

So a killed run loses no measurement. A percentage is never a bare number: `share` stores its
denominator too. Knows nothing about what is measured.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import minserve
from minserve.files.json_file import FileError, read_json
from minserve.files.output_file import writing
from minserve.hardware import describe_machine

SCHEMA = "minserve.gpu"
VERSION = 1
_MAX_BYTES = 64 << 20
_SAME = ("device", "versions", "commit", "dry_run", "settings")
"""Fields that must agree for a finished part to be kept."""
_READ = {
    "part": str, "device": dict, "versions": dict, "settings": dict, "status": str, "rows": list,
    "notes": list, "not_run": list,
}  # fmt: skip
"""The keys that a usable file must have."""
# An absolute path of two or more components: error messages of libraries contain them.
_PATH = re.compile(r"(?<![\w.])(?:/[\w.@+~-]+)+/([\w.@+~-]+)")


def share(numerator: float, denominator: float, of: str, unit: str) -> dict[str, Any]:
    """A percentage that names its denominator: "62 % of the copy bandwidth measured in this run".

    Raises ValueError for a denominator that is not positive.
    """
    if denominator <= 0 or not of:
        raise ValueError(f"share(of={of!r}, denominator={denominator}): expected a named limit")
    return {"share": numerator / denominator, "of": of, "denominator": denominator, "unit": unit}


class Record:
    """One part's file. `rows` are measurements, `notes` what a reader should know, and `not_run`
    what was omitted, in sentences."""

    def __init__(self, path: Path, frame: Mapping[str, Any]) -> None:
        self.path = path
        self.data: dict[str, Any] = {
            **frame,
            "status": "running",
            "seconds": None,
            "rows": [],
            "notes": [],
            "not_run": [],
        }

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one measurement and write the file at once."""
        self.data["rows"].append(dict(row))
        self.save()

    def replace(self, number: int, row: Mapping[str, Any]) -> None:
        """Replace a measurement by the same one with more rounds."""
        self.data["rows"][number] = dict(row)
        self.save()

    def note(self, sentence: str) -> None:
        """Add a sentence that a reader of the rows should know."""
        self.data["notes"].append(sentence)
        self.save()

    def skip(self, sentence: str) -> None:
        """Add a sentence about what was not run, and why."""
        self.data["not_run"].append(sentence)
        self.save()

    def finish(self, seconds: float, error: str | None = None) -> None:
        """Mark the part as done, or as failed with an error."""
        self.data["status"] = "done" if error is None else "failed"
        self.data["seconds"] = seconds
        if error is not None:
            self.data["error"] = error
        self.save()

    def save(self) -> None:
        """Write the file, completely or, with an OutputError, not at all."""
        partial = self.path.with_suffix(".tmp")
        text = json.dumps(_cleaned(self.data), indent=1, allow_nan=False)
        with writing(self.path, "the record"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(self.path)


def frame(
    part: str, settings: Mapping[str, Any], device: torch.device, commit: str | None, dry_run: bool
) -> dict[str, Any]:
    """The fields that every part's file begins with."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "part": part,
        "dry_run": dry_run,
        "device": describe_device(device),
        "versions": versions(),
        "commit": commit or checkout_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": dict(settings),
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    """The GPU and its driver; in a dry run the processor instead."""
    machine = describe_machine()
    if device.type != "cuda":
        return {"name": machine.processor(device), "type": device.type}
    gpu = machine.gpus[device.index or 0]
    return {
        "name": gpu.name,
        "type": "cuda",
        "driver": gpu.driver,
        "memory_bytes": gpu.memory_bytes,
        "compute_capability": gpu.compute_capability,
        "multiprocessors": gpu.multiprocessors,
    }


def versions() -> dict[str, str]:
    """Versions of everything that affects a result."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for package in ("triton", "transformers", "numpy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def checkout_commit() -> str | None:
    """The commit of this code, with "+" if a file of the package differs from it; None outside of a
    checkout. Recorded files do not count as code."""
    package = Path(minserve.__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=package, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=8", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+" * bool(changed)


def load(path: Path) -> dict[str, Any] | None:
    """A part's file; None if there is none that this version can read."""
    try:
        data = read_json(path, max_bytes=_MAX_BYTES, what="a part's record")
    except FileError:
        return None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("version") != VERSION:
        return None
    return data if all(isinstance(data.get(name), kind) for name, kind in _READ.items()) else None


def may_stay(data: Mapping[str, Any] | None, fresh: Mapping[str, Any]) -> bool:
    """True for a complete file of the same code, GPU and settings as a run now."""
    if data is None or data.get("status") != "done":
        return False
    return all(data.get(name) == fresh[name] for name in _SAME)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, Mapping):
        return {name: _cleaned(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cleaned(each) for each in value]
    return value


def without_paths(text: str) -> str:
    """Remove directories from paths: results are published, and a machine's paths are private."""
    return _PATH.sub(r"\1", text)
