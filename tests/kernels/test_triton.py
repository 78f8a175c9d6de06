"""The Triton kernels without a GPU: what they compute, and what they compile to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import sampled
import triton

from minserve.kernels import why_not_interpreted
from minserve.kernels.triton.analysis.resources import CAPABILITIES, compile_for, variants

BUDGETS = Path(__file__).parent / "triton_budgets.json"
FOLDER = Path(__file__).parent / "interpreted"
PINS = Path(__file__).parents[2] / "constraints.txt"
ELSEWHERE = 8
"""Registers that a Triton other than the pinned one may take beyond a budget; it may not spill."""


@pytest.mark.skipif(why_not_interpreted() is not None, reason=str(why_not_interpreted()))
def test_the_kernels_compute_what_torch_does_in_the_interpreter() -> None:
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    quiet = ["-q", "-x", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *quiet, *sampled.arguments(), str(FOLDER)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout


@pytest.mark.parametrize(
    "capability",
    [
        *(pytest.param(older, marks=pytest.mark.full) for older in CAPABILITIES[:-1]),
        CAPABILITIES[-1],
    ],
    ids=lambda capability: f"sm_{capability}",
)
@pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
def test_compiled_kernels_stay_within_their_budget(variant, capability) -> None:
    """Compiled, not run. New budgets: `python -m minserve.kernels.triton.analysis.resources`."""
    budgets = json.loads(BUDGETS.read_text())[variant.name]
    pinned = f"triton=={triton.__version__}" in PINS.read_text().split()
    slack = {"registers": 0 if pinned else ELSEWHERE, "shared_bytes": 0, "stack_bytes": 0}
    needed = asdict(compile_for(variant, capability))
    allowed = budgets[f"sm_{capability}"]
    grown = [
        f"{what}: {needed[what]}, allowed {most + slack[what]}"
        for what, most in allowed.items()
        if needed[what] > most + slack[what]
    ]
    assert not grown, (
        f"{variant.name} grew on sm_{capability} ({'; '.join(grown)}). If it is worth it, "
        f"put the new numbers into {BUDGETS.name} and say why"
    )


def test_every_kernel_has_a_budget_and_nothing_spills() -> None:
    budgets = json.loads(BUDGETS.read_text())
    assert budgets.keys() == {variant.name for variant in variants()}
    for name, targets in budgets.items():
        for target, allowed in targets.items():
            assert allowed["stack_bytes"] == 0, f"{name} spills registers on {target}"
