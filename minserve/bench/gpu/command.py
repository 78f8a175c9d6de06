"""`minserve bench gpu`: runs the parts and keeps their files.

Each part has its own process, so that its memory is free afterwards and an error of the device ends
only one part. A part is not run again if its file is complete and from the same code, GPU and
settings: a killed run continues where it stopped.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import minserve
from minserve.bench.gpu import report
from minserve.bench.gpu.parts import DEFAULT, GRACE_S, PARTS, TOTAL_S, Part
from minserve.bench.gpu.record import Record, frame, load, may_stay
from minserve.bench.gpu.setting import FASTEST, Setting
from minserve.bench.gpu.timing import Budget
from minserve.clock import Clock, WallClock
from minserve.config import ConfigError

OUT_OF_TIME = 124
"""The exit code of a part that was ended for time, the same as that of `timeout`."""
ROOT = Path(minserve.__file__).resolve().parent.parent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench gpu`."""
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"which, in this order; none: {', '.join(DEFAULT)}. tune takes minutes of its own",
    )
    parser.add_argument("--out", metavar="DIRECTORY", help="default: labs/recorded/gpu")
    parser.add_argument("--fresh", action="store_true", help="run finished parts again")
    parser.add_argument("--show", action="store_true", help="print what is recorded, run nothing")
    parser.add_argument("--commit", help="of this code, where there is no git checkout to ask")
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="toy sizes on the CPU, to see that every part runs; needs --out",
    )
    parser.add_argument("--child", metavar="PART", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, metavar="SECONDS", help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Run the parts that have no file yet and print the table; 1 if a part failed, 2 if there is no
    device to run on."""
    try:
        _check(args)
    except ConfigError as error:
        print(f"minserve bench gpu: {error}", file=sys.stderr)
        return 2
    folder = Path(args.out) if args.out else ROOT / "labs" / "recorded" / "gpu"
    if args.show:
        print(report.tables(folder))
        return 0
    if args.child:
        return run_part(PARTS[args.child], folder, args, WallClock())
    names = args.parts or DEFAULT
    chosen = [PARTS[name] for name in names]
    failed = run_parts(chosen, folder, args, WallClock(), launch)
    print(report.tables(folder, names))
    return int(bool(failed))


def _check(args: argparse.Namespace) -> None:
    """Raise ConfigError for arguments that cannot work."""
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        raise ConfigError(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if args.show:
        return
    if args.dry_run and not args.out:
        raise ConfigError(
            "--dry-run leaves figures of toy sizes, which must not stand among recorded ones: "
            "say --out DIRECTORY"
        )
    if not args.dry_run and not re.fullmatch(r"cuda(:\d+)?", args.device):
        raise ConfigError(f"--device {args.device}: expected cuda or cuda:N")
    if not args.dry_run and not torch.cuda.is_available():
        raise ConfigError(
            f"torch {torch.__version__} sees no CUDA device here. Run this on a machine with an "
            "NVIDIA GPU and a CUDA build of torch, with that machine's own Python: make gpu "
            "PYTHON=python3. --dry-run --out DIRECTORY runs every part at toy sizes on this CPU; "
            "--show prints what is recorded"
        )


def run_parts(
    parts: Sequence[Part],
    folder: Path,
    args: argparse.Namespace,
    clock: Clock,
    start: Callable[[Part, Path, argparse.Namespace, float], int],
) -> list[str]:
    """Run the parts that have no file yet; returns the names of parts that failed. `start` runs one
    part and returns its exit code, OUT_OF_TIME if it had to be ended."""
    whole = Budget(TOTAL_S, clock)
    failed = []
    for part in parts:
        path = folder / f"{part.name}.json"
        wanted = _frame(part, args)
        if not args.fresh and may_stay(load(path), wanted):
            _say(f"{part.name}: recorded already")
            continue
        _say(f"{part.name}: {part.title}, at most {part.limit_s:.0f} s")
        # Delete the file of an older run, in case this run ends before it writes one.
        Record(path, wanted).save()
        left_s = min(part.limit_s + GRACE_S, whole.left_s)
        # In less time a process cannot start and measure anything.
        code = OUT_OF_TIME if left_s < 2 * GRACE_S else start(part, folder, args, left_s)
        if code != 0:
            failed.append(part.name)
            _close(path, wanted, code)
            _say(f"{part.name}: failed; its file says how far it came")
    return failed


def _close(path: Path, wanted: dict[str, Any], code: int) -> None:
    """For a process that ended without a message: keep its measurements, marked as failed."""
    data = load(path) or {}
    if data.get("status") == "failed":
        return
    record = Record(path, wanted)
    record.data |= data
    ended = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code == OUT_OF_TIME:
        ended = "ended because its time was over; given again, the command continues with it"
    record.finish(0.0, f"the process of this part {ended}")


def launch(part: Part, folder: Path, args: argparse.Namespace, limit_s: float) -> int:
    """Run one part in a new process group, and end all of it when the time is over."""
    command = [sys.executable, "-m", "minserve.bench.gpu", "--child", part.name]
    command += ["--out", str(folder), "--device", args.device]
    command += ["--limit", str(max(0.0, limit_s - GRACE_S))]
    command += ["--commit", args.commit] if args.commit else []
    command += ["--dry-run"] if args.dry_run else []
    # The checkout need not be installed, and nothing may use the network.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if args.dry_run:
        environment["TRITON_INTERPRET"] = "1"
    environment |= caches(os.environ)
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=_end_with_parent()
    )
    try:
        return process.wait(timeout=limit_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return OUT_OF_TIME
        raise


def caches(environment: Mapping[str, str]) -> dict[str, str]:
    """Where compiled kernels and tuned tiles are stored if the home directory cannot be
    written: Triton would end with an error, and tiles would be lost. Variables set in
    `environment` are kept."""
    try:
        home = Path.home()
    except RuntimeError:  # There is none.
        home = Path()
    if home != Path() and os.access(home, os.W_OK):
        return {}
    folder = Path(tempfile.gettempdir()) / f"minserve-{os.getuid()}"
    places = {
        "TRITON_CACHE_DIR": "triton",
        "MINSERVE_CACHE_DIR": "minserve",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
    }
    return {
        name: str(folder / place) for name, place in places.items() if not environment.get(name)
    }


def _end_with_parent() -> Callable[[], None] | None:
    """A function that makes a process end when the suite is killed, so that it does not disturb the
    next run; None on systems without such a call."""
    if sys.platform != "linux":
        return None
    library, parent_death_signal = ctypes.CDLL(None), 1

    def ask() -> None:
        library.prctl(parent_death_signal, signal.SIGKILL)

    return ask


def run_part(part: Part, folder: Path, args: argparse.Namespace, clock: Clock) -> int:
    """Run one part in this process; returns 1 if it raised. Its file says what happened."""
    device = _device(args)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    record = Record(folder / f"{part.name}.json", _frame(part, args))
    record.save()
    budget = Budget(min(part.limit_s, args.limit or part.limit_s), clock)
    setting = Setting(device, args.dry_run, clock, budget, record, folder)
    error = None
    try:
        part.run(setting)
    except Exception as raised:
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}"[:2000]
    record.finish(budget.spent_s, error)
    return int(error is not None)


def _frame(part: Part, args: argparse.Namespace) -> dict[str, Any]:
    settings = {"limit_s": part.limit_s, "switches": FASTEST}
    return frame(part.name, settings, _device(args), args.commit, args.dry_run)


def _device(args: argparse.Namespace) -> torch.device:
    """The device with its number: torch does not switch to a device without one."""
    if args.dry_run:
        return torch.device("cpu")
    return torch.device("cuda", torch.device(args.device).index or 0)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
