"""Generation beside busy programs: tokens per second and processor time, by how threads wait.

Each side is a separate process, because OpenMP reads its wait policy when it is loaded. Sides
take turns within a round, alone and beside neighbours: processes that do nothing but use a core.
An unmeasured second comes before each pair of measurements, so that a side that adapts to the
load has done so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from minserve.bench.common import emit, print_table, versions
from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.config import ConfigError
from minserve.hardware import describe_machine
from minserve.process.openmp import CHOICES, SPIN_COUNT, VARIABLE

GNU_SPIN_COUNT = 300_000
"""Turns that GNU's OpenMP library spins by default."""
BEFORE, OURS = "long spin", "minserve"
# Ends when the process that started it ends, for whatever reason.
_NEIGHBOUR = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


def sides(cores: int) -> dict[str, tuple[dict[str, str], int]]:
    """Name -> (environment, `kernels.num_threads`). Only ours adapts spinning to the load: minserve
    does not change a variable that is set, whatever its value."""
    return {
        BEFORE: ({VARIABLE: str(GNU_SPIN_COUNT)}, cores),
        "bounded spin": ({VARIABLE: str(SPIN_COUNT + 1)}, cores),
        OURS: ({}, cores),
        "passive": ({"OMP_WAIT_POLICY": "PASSIVE"}, cores),
        "one thread": ({}, 1),
    }


class BusySideError(RuntimeError):
    """A side's process has ended; the message says how."""


class BusySide:
    """A side's process. It blocks in a read, using no processor time, while others run."""

    def __init__(self, model: str, environment: Mapping[str, str], threads: int) -> None:
        chosen = (*CHOICES, "OMP_NUM_THREADS")
        inherited = {name: text for name, text in os.environ.items() if name not in chosen}
        command = [sys.executable, "-m", "minserve.bench.runs.busy_side", model, str(threads)]
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**inherited, **environment},
            text=True,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def measure(self, rows: int, tokens: int, seconds: float) -> dict[str, float]:
        """See `busy_side.measure`. Raises BusySideError if the process has ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # It has ended; reading its answer says why.
            request = {"rows": rows, "tokens": tokens, "seconds": seconds}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip()[-400:] or "it said nothing"
            raise BusySideError(f"a side's process ended with code {code}: {said}")
        answer: dict[str, float] = json.loads(line)
        return answer


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`count` processes that use a core each; they are always ended."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen([sys.executable, "-c", _NEIGHBOUR]))
        yield running
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench busy`."""
    parser.add_argument("--model", default="zoo/base", help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=12, help="of the batch (default: %(default)s)")
    parser.add_argument(
        "--neighbours",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        metavar="N",
        help="busy programs beside it (default: 0 1 2)",
    )
    parser.add_argument("--only", nargs="+", metavar="SIDE", help="some of the sides")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="of each measurement (default: %(default)s)"
    )
    parser.add_argument("--warm-up", type=float, default=1.0, metavar="S", help="before each pair")
    parser.add_argument("--json", metavar="FILE", help="write the result there, not to stdout")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    cores = _cores()
    if cores < 2:
        raise ConfigError("`minserve bench busy` compares two threads and more: it needs two cores")
    chosen = sides(cores)
    for name in args.only or ():
        if name not in chosen:
            raise ConfigError(f"--only {name!r}: there are {', '.join(map(repr, chosen))}")
    chosen = {name: side for name, side in chosen.items() if name in (args.only or chosen)}
    with contextlib.ExitStack() as stack:
        running = {}
        for name, (environment, threads) in chosen.items():
            running[name] = BusySide(args.model, environment, threads)
            stack.callback(running[name].close)
        calls = {
            (count, name): partial(_visit, side, count, args)
            for count in args.neighbours
            for name, side in running.items()
        }
        visits = interleave(
            {f"{count} {name}": call for (count, name), call in calls.items()},
            args.repeats,
            progress=not args.no_progress,
        )
    result: dict[str, Any] = {
        "benchmark": "busy",
        "model_id": args.model,
        "rows": args.rows,
        "repeats": args.repeats,
        "seconds": args.seconds,
        "sides": {name: {"environment": env, "threads": n} for name, (env, n) in chosen.items()},
        "versions": versions(),
        "machine": describe_machine().to_dict(),
        "measurements": [],
    }
    for what in ("batch", "single"):
        for count, name in calls:
            values = [visit[what] for visit in visits[f"{count} {name}"]]
            result["measurements"].append(_figures(what, count, name, values))
    _add_ratios(result["measurements"])
    print_table(*_table(result["measurements"], args.rows))
    emit(result, args.json)
    return 0


def _cores() -> int:
    return describe_machine().cpu_cores


def _visit(side: BusySide, count: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    with neighbours(count):
        # Few tokens per call: beside two neighbours a long spin generates about 20 per second.
        side.measure(args.rows, 2, args.warm_up)
        return {
            "batch": side.measure(args.rows, 8, args.seconds),
            "single": side.measure(1, 8, args.seconds),
        }


def _figures(what: str, count: int, name: str, values: list[dict[str, float]]) -> dict[str, Any]:
    keys = ("tokens_per_s", "cpu_ms_per_token")
    spreads = {key: vars(Spread.of([value[key] for value in values])) for key in keys}
    return {"what": what, "neighbours": count, "side": name, **spreads}


def _add_ratios(measurements: list[dict[str, Any]]) -> None:
    """Add each side's tokens per second divided by those of the long spin, round by round."""
    before = {
        (each["what"], each["neighbours"]): each["tokens_per_s"]["values"]
        for each in measurements
        if each["side"] == BEFORE
    }
    for each in measurements:
        base = before.get((each["what"], each["neighbours"]))
        if base is not None:
            each["times_before"] = vars(pairwise_ratio(each["tokens_per_s"]["values"], base))


def _table(measurements: list[dict[str, Any]], rows: int) -> tuple[list[str], list[list[str]]]:
    def text(spread: Mapping[str, float] | None) -> str:
        return "" if spread is None else "{median:.3g} ({min:.3g} to {max:.3g})".format(**spread)

    header = ["side", "rows", "neighbours", "tokens/s", "CPU-ms a token", f"times {BEFORE!r}"]
    return header, [
        [
            each["side"],
            str(rows if each["what"] == "batch" else 1),
            str(each["neighbours"]),
            text(each["tokens_per_s"]),
            text(each["cpu_ms_per_token"]),
            text(each.get("times_before")),
        ]
        for each in measurements
    ]
