"""Compiles the C++ file with the system's compiler, once per machine.

The library lies in the user's cache directory under a name made of everything that went into it:
source, compiler, flags and the processor's features. A home directory shared between machines, an
upgraded compiler or an edited source therefore never meet a stale library. Knows nothing about
tensors.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = ("vectors.h", "ops.cpp")
_HERE = Path(__file__).parent
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT_S = 120


class NativeUnavailable(RuntimeError):
    """The native operators cannot run here; the message says why, in a sentence."""


def cache_dir() -> Path:
    """Where libraries are kept: `minserve` under the user's cache directory; RuntimeError for a
    user without a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minserve"


def library_path() -> Path:
    """The compiled operators, built now if this machine has not built them before.

    Raises NativeUnavailable when there is no compiler, or it fails, or nothing can be written.
    """
    compiler, version = _compiler()
    flags = _flags(version)
    digest = hashlib.sha256()
    for part in (*compiler, version, *flags, *sorted(processor_features())):
        digest.update(part.encode() + b"\0")
    for name in SOURCES:
        digest.update((_HERE / name).read_bytes())
    try:
        directory = cache_dir()
    except RuntimeError as error:
        raise NativeUnavailable(f"there is nowhere to keep the operators: {error}") from error
    library = directory / f"ops-{digest.hexdigest()[:20]}.so"
    if library.is_file():
        return library
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Built under a name of its own and then renamed: processes that build at the same time
        # each see either no library or a whole one.
        with tempfile.TemporaryDirectory(dir=directory, prefix="build-") as scratch:
            fresh = Path(scratch) / library.name
            _run([*compiler, *flags, str(_HERE / SOURCES[-1]), "-o", str(fresh)])
            os.replace(fresh, library)
    except OSError as error:
        raise NativeUnavailable(
            f"the operators could not be built in {directory}: {error}"
        ) from error
    return library


def need_compiler() -> None:
    """Raise NativeUnavailable, in a sentence, where there is no C++ compiler that starts."""
    _compiler()


def _compiler() -> tuple[list[str], str]:
    """The compiler's command and what it says its version is."""
    chosen = os.environ.get("CXX")
    if chosen:
        command = shlex.split(chosen)
        return command, _run([*command, "--version"])
    for name in _COMPILERS:
        if shutil.which(name):
            return [name], _run([name, "--version"])
    raise NativeUnavailable(
        "there is no C++ compiler: install g++ or clang, or name one in the variable CXX"
    )


def _flags(version: str) -> list[str]:
    # torch's wheels for Linux bring libgomp; g++'s -fopenmp shares it, and its threads, through
    # its name. clang would load a second runtime beside it, so it builds without threads.
    openmp = "-fopenmp-simd" if "clang" in version.lower() else "-fopenmp"
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    flags = ["-std=c++17", "-O3", native, openmp, "-fPIC", "-shared", "-fvisibility=hidden"]
    flags += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
    if platform.machine() in ("x86_64", "AMD64"):
        # The source asks for full-width vectors; without this g++ converts bfloat16 by halves.
        flags.append("-mprefer-vector-width=512")
        if openmp == "-fopenmp":
            # For some processors g++ splits a multiply-add where a loop has few sums and not where
            # it has many: rows would round differently with their number.
            flags.append("--param=avoid-fma-max-bits=0")
    return flags


def processor_features() -> frozenset[str]:
    """What -march=native depends on, in Linux's words; elsewhere only the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset({platform.machine(), platform.processor()})


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailable(
            f"`{shlex.join(command[:1])}` did not finish in {_TIMEOUT_S} seconds"
        ) from error
    except OSError as error:
        raise NativeUnavailable(f"the C++ compiler could not be run: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NativeUnavailable(
            f"`{shlex.join(command[:1])}` failed with status {done.returncode}"
            + (f": {said[0]}" if said else "")
        )
    return done.stdout
