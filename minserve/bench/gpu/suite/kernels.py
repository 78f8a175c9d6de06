"""The kernels: whether they pass their tests on this device, and how near they come to its limits
and to torch's best operators.

Bandwidth is least bytes divided by time, so a kernel that moves more bytes shows a lower one.
"""

from __future__ import annotations

from typing import Any

import torch

from minserve.bench.gpu.cases.attention_cases import AttentionCases
from minserve.bench.gpu.cases.kernel_cases import OURS, REAL, TOY, Case, Sizes
from minserve.bench.gpu.cases.kernel_tests import run_tests
from minserve.bench.gpu.cases.row_cases import RowCases
from minserve.bench.gpu.setting import Setting, bandwidth_shares, free, matrix_share
from minserve.bench.gpu.timing import Call, num_copies, race
from minserve.bench.interleave import pairwise_ratio
from minserve.hardware import Ceilings
from minserve.kernels import select_ops
from minserve.kernels.base import Ops
from minserve.kernels.select import why_not_triton

ROUNDS = 7
_TESTS_S = 40.0
"""Seconds kept for the tests, which run last and need all the time they get, for compiling."""


def run(setting: Setting) -> None:
    """A row for the tests and one per operator and shape. Raises RuntimeError at the end if tests
    or kernels failed."""
    ceilings, dtype = setting.ceilings(), getattr(torch, setting.dtype)
    backend = "triton"
    if setting.dry_run and (reason := why_not_triton(setting.device, dtype)) is not None:
        setting.record.note(f"torch operators stand in for the kernels: {reason}")
        backend = "torch"
    ops = select_ops(backend, setting.device, dtype)
    failed: list[str] = []
    for case in all_cases(ops, setting.pick(REAL, TOY), setting.device, dtype):
        if not setting.time_for(f"{case.name}, {case.shape}", 2.0 + _TESTS_S):
            continue
        try:
            with torch.inference_mode():
                setting.record.add(_measure(setting, case, ceilings))
            free(setting.device)
        except Exception as error:
            failed.append(f"{case.name}, {case.shape}: {type(error).__name__}: {error}"[:300])
            setting.record.skip(failed[-1])
    tests = run_tests(setting)
    setting.record.add(tests)
    if tests["failed"]:
        failed.append(f"{tests['failed']} kernel tests failed")
    if failed:
        raise RuntimeError("; ".join(failed))


def all_cases(ops: Ops, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> list[Case]:
    """The most important first, in case time runs out."""
    attention = AttentionCases(ops, sizes, device, dtype).cases()
    return attention + RowCases(ops, sizes, device, dtype).cases()


def _measure(setting: Setting, case: Case, ceilings: Ceilings) -> dict[str, Any]:
    copies = num_copies(case.moved, setting.device)
    sides: dict[str, list[Call]] = {}
    lost: dict[str, str] = {}
    made = [case.make() for _ in range(copies)]
    for name in made[0]:
        calls = [each[name] for each in made]
        try:
            calls[0]()
            sides[name] = calls
        except Exception as error:
            if name == OURS:
                raise
            lost[name] = f"{type(error).__name__}: {error}"[:300]
    rounds = setting.pick(ROUNDS, 1)
    found = race(sides, setting.device, rounds, case.uncapturable, setting.clock)
    row: dict[str, Any] = {
        "name": case.name,
        "shape": case.shape,
        "dtype": setting.dtype,
        "buffer_sets": copies,
        "least_bytes": case.moved,
        "flops": case.flops,
        "sides": {n: vars(t.seconds) | {"timed_by": t.how} for n, t in found.items()},
        "sides_lost": lost,
    }
    if OURS not in found:
        return row | {"note": "these operators have no kernel for it"}
    mine = found[OURS].seconds
    row["bandwidth"] = bandwidth_shares(case.moved / mine.median, ceilings, setting.device)
    if case.flops:
        row["matrix"] = matrix_share(case.flops / mine.median, ceilings, setting.dtype)
    peers = {name: each.seconds for name, each in found.items() if not name.startswith(OURS)}
    if peers:
        best = min(peers, key=lambda name: peers[name].median)
        row["best_peer"] = best
        row["best_peer_over_minserve"] = vars(pairwise_ratio(peers[best].values, mine.values))
    return row
