"""Compiles the C++ files with the system's compiler, once per machine.

The library is in the user's cache directory, under a name made of everything it depends on:
sources, compiler, flags and the processor's features. So a stale library is never loaded, even
after an edit, a compiler upgrade, or in a home directory shared between machines. Its digest is
beside it: a truncated or changed library would crash the process when it is loaded, or run foreign
code. Knows nothing about tensors.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from minserve.files import cache_dir
from minserve.files.json_types import build

SOURCES = (
    "vectors.h",
    "matrix.h",
    "kinds/dense.h",
    "kinds/int8.h",
    "products.h",
    "rows.h",
    "attention.h",
    "attention_few.h",
    "attention_many.h",
    "layers.h",
    "ops.cpp",
)
"""All files of the one compilation unit, which is the last."""
_HERE = Path(__file__).parent
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT_S = 120
_LOCK_TIMEOUT_S = 180
"""Time to wait while another process builds; after that, this process builds too."""


class NativeUnavailable(RuntimeError):
    """The native operators cannot run here; the message is a sentence that says why."""


@dataclass(frozen=True)
class Built:
    """The data stored beside a library."""

    inputs: str
    """SHA-256 of the sources, the compiler, its flags and the processor's features."""
    sha256: str
    """SHA-256 of the library."""


def library_path() -> Path:
    """The path of the compiled operators; built now if this machine has not built them before.

    Only this user can write the directory and the file, so the content that is checked here is the
    content that is loaded. A library that fails the check is built again, and a cache that cannot
    be used is replaced by a directory of this process; both with a warning.

    Raises NativeUnavailable if there is no compiler, if it fails, or if nothing can be written.
    """
    compiler, version = _compiler()
    command = [*compiler, *_flags(version)]
    inputs = _inputs(command, version)
    directory = cache_dir.user_cache_directory()
    try:
        cache_dir.secure(directory)
        return _kept(directory, command, inputs)
    except OSError as error:
        cache_dir.say_once(
            f"The compiled operators cannot be kept for the next time ({_said(error)}): they are "
            "built for this process alone."
        )
    try:
        return _kept(_process_directory(), command, inputs)
    except OSError as error:
        raise NativeUnavailable(f"the operators could not be built: {_said(error)}") from error


def _kept(directory: Path, command: list[str], inputs: str) -> Path:
    """The library in this directory; built if it is missing or damaged. Raises OSError."""
    library = directory / f"ops-{inputs[:20]}.so"
    if _why_not(library, inputs) is None:
        return library
    # One process builds and the others wait for it: with two cores that is faster for all.
    with FileLock(directory / "build.lock", timeout=_LOCK_TIMEOUT_S, mode=0o600):
        reason = _why_not(library, inputs)
        if reason is None:
            return library
        if reason:
            cache_dir.say_once(
                f"The compiled operators in the cache are not used: {reason}. They are built again."
            )
        with tempfile.TemporaryDirectory(dir=directory, prefix="build-") as scratch:
            fresh = Path(scratch) / library.name
            _run([*command, str(_HERE / SOURCES[-1]), "-o", str(fresh)])
            fresh.chmod(0o700)
            built = Built(inputs, _sha256(fresh))
            # The digest is written last: if the process ends before that, the library is built
            # again.
            cache_dir.move(fresh, library)
        if not cache_dir.write(_beside(library), asdict(built), "the digest of the operators"):
            raise OSError("its digest cannot be written")
    return library


def _why_not(library: Path, inputs: str) -> str | None:
    """Why a library may not be loaded; "" if there is none with a digest; None if it may."""
    beside = _beside(library)
    if not os.path.lexists(library) or not os.path.lexists(beside):
        return ""
    try:
        cache_dir.check_file(library)
        built = cache_dir.read(beside, lambda data: build(Built, data), "a digest of a library")
        if built is None:
            return ""  # The reason was reported.
        if built != Built(inputs, _sha256(library)):
            return f"{library.name} is not what was built"
    except OSError as error:
        return _said(error)
    return None


def _beside(library: Path) -> Path:
    return library.with_suffix(".json")


@functools.cache
def _process_directory() -> Path:
    """A directory that is deleted at the end of this process. Raises OSError."""
    directory = tempfile.mkdtemp(prefix="minserve-ops-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def _inputs(command: list[str], version: str) -> str:
    digest = hashlib.sha256()
    for part in (*command, version, *sorted(processor_features())):
        digest.update(part.encode() + b"\0")
    for name in SOURCES:
        digest.update((_HERE / name).read_bytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _said(error: OSError) -> str:
    return error.strerror or str(error)


def need_compiler() -> None:
    """Raise NativeUnavailable, with a sentence, if there is no C++ compiler that starts."""
    _compiler()


def _compiler() -> tuple[list[str], str]:
    """The compiler's command, and the version that it prints."""
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
    # torch's wheels for Linux include libgomp, and g++'s -fopenmp uses that copy and its
    # threads, because the name is the same. clang would load a second OpenMP runtime, so it
    # builds without threads.
    openmp = "-fopenmp-simd" if "clang" in version.lower() else "-fopenmp"
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    flags = ["-std=c++17", "-O3", native, openmp, "-fPIC", "-shared", "-fvisibility=hidden"]
    flags += ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
    if platform.machine() in ("x86_64", "AMD64"):
        # The source uses vectors of full width; without this flag g++ converts
        # bfloat16 in two halves.
        flags.append("-mprefer-vector-width=512")
        if openmp == "-fopenmp":
            # For some processors g++ splits a multiply-add in loops with few sums, but not in loops
            # with many: a row's rounding would then depend on the number of rows.
            flags.append("--param=avoid-fma-max-bits=0")
    return flags


def processor_features() -> frozenset[str]:
    """The processor features that -march=native depends on: Linux's list; elsewhere only the
    processor's name."""
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
