"""The cost of a step on a measured machine: a least-squares fit over recorded steps.

A roofline gives only the least time of a step; on an available machine the real time can be
measured. The fit is linear in the engine's counts (attention arithmetic, cached bytes read,
requests). In the number of rows it is piecewise linear, because products are limited by memory at
one row and by arithmetic at hundreds.

Outliers hardly affect the fit, but occasional delays are part of a machine's time: the result is
scaled so that all steps together take as long as measured, with the longest steps cut.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minserve.files import cache_dir
from minserve.files.json_types import build
from minserve.trace import StepTrace, StepWork

KNOTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Numbers of rows at which the cost of one more row may change."""
_GAP_SHARE = 0.25
"""A step that begins this soon after the last one (in durations) follows it without a pause."""
_WORST = 2.0
"""When the result is scaled, a step's measured time counts as at most this many times
its fitted cost."""
_LONGEST_S = 1e5
"""A step of more than a day is not a measurement."""
VERSION = 2


@dataclass(frozen=True)
class Machine:
    """The machine and model that were measured."""

    name: str
    model: str
    threads: int
    torch_version: str
    date: str


@dataclass(frozen=True)
class FittedCost:
    """A `StepCost` of one machine, model and number format."""

    device: Machine
    dtype: str
    coefficients: tuple[float, ...]
    """Seconds: per step, per row beyond each knot, per attention FLOP, per cached byte read, per
    cached byte of the average request, per request."""
    floor_s: float
    """The shortest step that was measured; no modelled step is shorter."""
    num_steps: int
    median_error: float
    """Median of |fitted - seen| / seen over the steps it was fitted to."""

    def step_s(self, work: StepWork, num_tokens: int, num_requests: int) -> float:
        """Seconds of a step."""
        row = _features(work, num_tokens, num_requests)
        fitted = sum(a * b for a, b in zip(self.coefficients, row, strict=True))
        return max(self.floor_s, fitted)

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"version": VERSION} | asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> FittedCost:
        """The inverse of `to_json`. Raises ValueError for anything else, or another version."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, data: Any) -> FittedCost:
        """A cost from the value in the file. Raises ValueError with a sentence for anything else,
        and for numbers that no fit can give."""
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise ValueError("a calibration of another version: run `minserve bench calibrate`")
        fields = {name: data[name] for name in data if name != "version"}
        found = build(cls, fields, "calibration")
        expected = len(_features(StepWork(), 0, 0))
        if len(found.coefficients) != expected:
            raise ValueError(f"{len(found.coefficients)} coefficients, expected {expected}")
        if not 0 < found.floor_s < _LONGEST_S or max(map(abs, found.coefficients)) > _LONGEST_S:
            raise ValueError(f"calibration: expected steps between 0 and {_LONGEST_S:g} seconds")
        if found.num_steps < 1 or found.median_error < 0:
            raise ValueError("calibration: expected steps that were seen, and an error from 0")
        return found

    def save(self, path: str | Path) -> None:
        """Write the file, completely or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        cache_dir.replace(path, self.to_json().encode(), mode=0o644)


def fit(steps: Iterable[StepTrace], device: Machine, dtype: str) -> FittedCost:
    """Fit recorded steps, in order. Raises ValueError for fewer than 100.

    If a step is followed by the next one at once, its time is from its start to the next one's
    start: the time between such steps is part of a step's cost.
    """
    recorded = list(steps)
    if len(recorded) < 100:
        raise ValueError(f"fit: {len(recorded)} steps, expected at least 100")
    seconds = np.array(_seconds(recorded))
    rows = np.array([_features(s.work, s.num_tokens, s.num_scheduled) for s in recorded])
    # Relative errors count: a step of a millisecond matters as much as one of a second.
    weights = 1.0 / seconds
    found = _robust(rows * weights[:, None], seconds * weights)
    fitted = np.maximum(rows @ found, seconds.min())
    found *= float(np.minimum(seconds, _WORST * fitted).sum() / fitted.sum())
    fitted = np.maximum(rows @ found, seconds.min())
    return FittedCost(
        device=device,
        dtype=dtype,
        coefficients=tuple(float(value) for value in found),
        floor_s=float(seconds.min()),
        num_steps=len(recorded),
        median_error=float(np.median(np.abs(fitted - seconds) / seconds)),
    )


def _robust(
    matrix: npt.NDArray[np.float64], target: npt.NDArray[np.float64], rounds: int = 10
) -> npt.NDArray[np.float64]:
    """Least squares in which outliers have less weight (Huber): now and then another program makes
    a step ten times as long, which is not the step's cost."""
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    scaled = matrix / scale
    weights = np.ones_like(target)
    found = np.zeros(matrix.shape[1])
    for _ in range(rounds):
        root = np.sqrt(weights)
        # A very small ridge term: columns that are always zero get the coefficient 0.
        padded = np.vstack([scaled * root[:, None], 1e-6 * np.eye(scaled.shape[1])])
        wanted = np.concatenate([target * root, np.zeros(scaled.shape[1])])
        found = np.linalg.lstsq(padded, wanted, rcond=None)[0]
        error = np.abs(scaled @ found - target)
        limit = 1.5 * max(float(np.median(error)), 1e-9)
        weights = np.minimum(1.0, limit / np.maximum(error, 1e-12))
    result: npt.NDArray[np.float64] = found / scale
    return result


def _features(work: StepWork, num_tokens: int, num_requests: int) -> list[float]:
    hinges = [float(max(0, num_tokens - knot)) for knot in KNOTS]
    return [
        1.0,
        *hinges,
        float(work.attention_flops),
        float(work.kv_read_bytes),
        # One request's pages are read by fewer threads than those of many.
        work.kv_read_bytes / max(1, num_requests),
        float(num_requests),
    ]


def _seconds(steps: Sequence[StepTrace]) -> list[float]:
    found = [step.duration_s for step in steps]
    for index, (step, after) in enumerate(itertools.pairwise(steps)):
        pause = after.start_s - step.end_s
        if 0 <= pause < _GAP_SHARE * step.duration_s:
            found[index] += pause
    return found
