"""`minserve lab`: the doctor (can the chapters run here, and what would help?) and the grader.

Changes nothing but caches. Gives advice in sentences; the exit code is 1 if a chapter would fail.
Knows package names and versions, and asks the lab where its files are: the engine never imports it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from minserve.cli import grade

State = Literal["ok", "note", "problem"]

KNOWN_BAD = {
    "ipykernel": ("==7.0.*", "in 7.0 what a widget's button starts may never be heard of"),
    "plotly": ("<6.1", "before 6.1 live figures and SVG export do not work with these versions"),
}
"""Package -> versions that can be installed but fail in the lab, and why."""

ENOUGH_BYTES = 2 * 10**9
LEAST_BYTES = 12 * 10**8
"""Memory that a chapter needs at most, as the chapters promise."""

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: State
    """"problem": a chapter would fail; "note": something to know."""
    text: str
    """The facts found."""
    advice: str = ""
    """One sentence: what to do about it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    doctor = actions.add_parser("doctor", help="look whether the lab can run here")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    grade.add_arguments(actions.add_parser("grade", help="grade the exercises of a class"))


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    return grade.run(args) if args.action == "grade" else _doctor(args)


def _doctor(args: argparse.Namespace) -> int:
    """Run the checks and print their findings."""
    found = examine()
    healthy = not any(finding.state == "problem" for finding in found)
    if args.json:
        print(json.dumps({"healthy": healthy, "findings": [asdict(f) for f in found]}, indent=1))
        return 0 if healthy else 1
    signs = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    for finding in found:
        print(f"{signs[finding.state]}  {finding.name}: {finding.text}")
        if finding.advice:
            print(f"         {finding.advice}")
    print("\nThe lab can run here." if healthy else "\nThe lab cannot run here as it is.")
    return 0 if healthy else 1


def examine() -> list[Finding]:
    """All findings, in the order in which to fix them."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _python, _packages, _model, _chapters, _memory, _threads, _ceilings, _operators, _browser,
        _place,
    )  # fmt: skip
    return [finding for look in looks for finding in look()]


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Finding("Python", "ok", version)
    else:
        advice = "Install one of those and set up anew: make setup PYTHON=/path/to/python3.12"
        yield Finding("Python", "problem", f"{version}; the lab needs 3.11, 3.12 or 3.13", advice)


def requirements() -> dict[str, str]:
    """Package -> accepted versions of the lab's packages, as minserve declares them."""
    from packaging.requirements import Requirement

    found = {}
    for text in importlib.metadata.requires("minserve") or []:
        wanted = Requirement(text)
        if wanted.name == "torch" or (
            wanted.marker and wanted.marker.evaluate({"extra": "lab"}) and "extra" in text
        ):
            found[wanted.name] = str(wanted.specifier)
    return found


def installed(package: str) -> str | None:
    """The installed version; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    for package, wanted in sorted(requirements().items()):
        version = installed(package)
        install = f'Say: python -m pip install -c constraints.txt "{package}{wanted}"'
        bad, why = KNOWN_BAD.get(package, ("<0", ""))
        if version is None:
            yield Finding(package, "problem", "not installed", install)
        elif SpecifierSet(bad).contains(version, prereleases=True):
            yield Finding(package, "problem", f"{version}; {why}", install)
        elif not SpecifierSet(wanted).contains(version, prereleases=True):
            yield Finding(package, "problem", f"{version}; the lab needs {wanted}", install)
        else:
            yield Finding(package, "ok", version)


def _model() -> Iterator[Finding]:
    from minserve.loading import ZOO

    weights = ZOO / "base" / "model.safetensors"
    if weights.is_file():
        yield Finding("model zoo/base", "ok", f"{weights.stat().st_size / 1e6:.0f} MB")
    else:
        advice = "Restore it with git: git checkout -- minserve/zoo"
        yield Finding("model zoo/base", "problem", "its weights are missing", advice)


def _chapters() -> Iterator[Finding]:
    try:
        # The engine never imports the lab. Its doctor asks it, where there is one.
        checkout = importlib.import_module("widgets.notebooks.checkout")
        labs: Path = checkout.labs_directory()
        missing = [f"{labs / name}" for name in checkout.FOLDERS if not (labs / name).is_dir()]
    except ImportError as error:
        advice = "Install the packages named above first."
        yield Finding("chapters' files", "problem", f"cannot be looked for: {error}", advice)
    except FileNotFoundError as error:
        yield Finding("chapters' files", "problem", str(error))
    else:
        if missing:
            advice = "Restore them: git checkout -- labs, or install the package again."
            text = f"missing: {', '.join(missing)}"
            yield Finding("chapters' files", "problem", text, advice)
        else:
            yield Finding("chapters' files", "ok", f"{labs}")


def available_bytes() -> int | None:
    """Memory that a notebook may still use, within a container's limit; None if unknown."""
    known = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                known.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            known.append(max(0, int(limit) - used))
    except (OSError, ValueError, IndexError):
        pass
    return min(known) if known else None


def _memory() -> Iterator[Finding]:
    free = available_bytes()
    if free is None:
        yield Finding("memory", "note", "this system does not say how much is free")
    elif free < LEAST_BYTES:
        advice = "Close other notebooks and programs: a chapter may take 1.2 GB."
        yield Finding("memory", "problem", f"{free / 1e9:.1f} GB free", advice)
    elif free < ENOUGH_BYTES:
        advice = "Enough for one chapter at a time: shut down a kernel before opening the next."
        yield Finding("memory", "note", f"{free / 1e9:.1f} GB free", advice)
    else:
        yield Finding("memory", "ok", f"{free / 1e9:.1f} GB free")


def allowed_cores() -> float | None:
    """Cores that a container may use; None if it has no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _threads() -> Iterator[Finding]:
    from minserve.hardware import describe_machine

    machine = describe_machine()
    cores = min(float(machine.cpu_cores), allowed_cores() or float("inf"))
    text = f"{machine.threads} for {cores:g} cores ({machine.cpu_model})"
    if machine.threads > max(1.0, cores):
        advice = f"Threads would wait for each other: set OMP_NUM_THREADS={max(1, int(cores))}."
        yield Finding("threads", "note", text, advice)
    elif machine.threads < cores and os.environ.get("OMP_NUM_THREADS"):
        advice = "OMP_NUM_THREADS limits them; measurements are of that many threads."
        yield Finding("threads", "note", text, advice)
    else:
        yield Finding("threads", "ok", text)


def _ceilings() -> Iterator[Finding]:
    from minserve.hardware.ceilings import kept_ceilings

    best = kept_ceilings("cpu", ("float32",))
    if best is None:
        advice = (
            "The first chapter that needs them measures for some seconds; let nothing else run."
        )
        yield Finding("ceilings", "note", "not measured here yet", advice)
        return
    largest = best.bandwidth[-1]
    text = (
        f"{best.flops_per_s('float32') / 1e9:.0f} GFLOP/s in float32, "
        f"{largest.read.per_s / 1e9:.0f} GB/s from memory, measured {best.date}"
    )
    yield Finding("ceilings", "ok", text)


def _operators() -> Iterator[Finding]:
    from minserve.kernels import why_not_native

    reason = why_not_native()
    if reason is None:
        yield Finding("C++ operators", "ok", "compiled for this processor")
    else:
        advice = (
            "torch's own operators are used instead. They are slower, and round differently, so "
            "that in bfloat16 the text can change."
        )
        yield Finding("C++ operators", "note", reason, advice)


def _browser() -> Iterator[Finding]:
    found = next((name for name in _BROWSERS if shutil.which(name)), None)
    kaleido = importlib.util.find_spec("kaleido") is not None
    if found and kaleido:
        yield Finding("SVG export", "ok", f"{found}, kaleido {installed('kaleido') or ''}".strip())
        return
    missing = [] if found else ["no Chromium or Chrome (for example: apt-get install chromium)"]
    missing += [] if kaleido else ["no kaleido (python -m pip install kaleido)"]
    advice = "Only `make figures` and browser tests need them; every chapter runs without."
    yield Finding("SVG export", "note", "; ".join(missing), advice)


def _place() -> Iterator[Finding]:
    colab = "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules
    if colab:
        advice = (
            "Run this first, or no panel appears: "
            "from google.colab import output; output.enable_custom_widget_manager()"
        )
        yield Finding("place", "note", "Google Colab", advice)
    elif "VSCODE_PID" in os.environ or os.environ.get("TERM_PROGRAM") == "vscode":
        advice = "Choose .venv as the notebook's kernel; panels need the Jupyter extension."
        yield Finding("place", "note", "VS Code", advice)
    elif "BINDER_SERVICE_HOST" in os.environ or "BINDER_REPO_URL" in os.environ:
        advice = (
            "Its cores are shared, so that measured curves are noise: "
            "MINSERVE_CLOCK=virtual models time instead."
        )
        yield Finding("place", "note", "Binder", advice)
    else:
        yield Finding("place", "ok", "a machine of your own, as far as can be seen")
