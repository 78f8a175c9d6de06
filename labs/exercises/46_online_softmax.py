"""Chapter 46: the inner loop of attention with an online softmax, run in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from widgets.panels import Case, Exercise, Failure, Misconception, Score, Wrong
from widgets.panels.exercise import labs_directory

INTERPRETED = Path(__file__).with_name("_interpreted.py")
LIMIT_S = 90.0
"""For all cases together: they share one process, most of which is starting it."""


def _module() -> Any:
    spec = importlib.util.spec_from_file_location("labs_interpreted", INTERPRETED)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


inputs: Callable[[dict[str, Any]], tuple[Tensor, Tensor, Tensor]] = _module().inputs


def shape(
    context: int, tile: int = 16, dim: int = 16, size: float = 1.0, peak: int | None = None,
    seed: int = 46,
) -> dict[str, Any]:  # fmt: skip
    """A case in numbers; see `_interpreted.inputs`."""
    return {"context": context, "tile": tile, "dim": dim, "size": size, "peak": peak, "seed": seed,
            "scale": dim**-0.5}  # fmt: skip


class Written:
    """A solution as text, where there is no function to take it from."""

    def __init__(self, source: str) -> None:
        self.source = source


def _source(solution: Any) -> str:
    if isinstance(solution, Written):
        return solution.source
    return textwrap.dedent(inspect.getsource(solution))


_KNOWN: dict[str, list[dict[str, Any]]] = {}


def results(solution: Any) -> list[dict[str, Any]]:
    """What a solution makes of every shape, in one process; remembered by its source."""
    source = _source(solution)
    if source not in _KNOWN:
        _KNOWN[source] = _interpret(source)
    return _KNOWN[source]


def _interpret(source: str) -> list[dict[str, Any]]:
    if importlib.util.find_spec("triton") is None:
        raise Wrong("Triton is not installed here (it runs on Linux), so no kernel can be tried")
    try:
        done = subprocess.run(
            [sys.executable, str(INTERPRETED)],
            input=json.dumps({"source": source, "cases": SHAPES}),
            env={**os.environ, "TRITON_INTERPRET": "1"},
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        broken = {"error": f"it took longer than {LIMIT_S:g} s; is there a loop that never ends?"}
        return [broken] * len(SHAPES)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Wrong(f"the interpreter's process ended without an answer: {last}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def attention(case: dict[str, Any], wrong: str = "") -> Tensor:
    """The definition in float64, tile by tile; `wrong` names what is left out."""
    q, keys, values = (each.double() for each in inputs(case))
    scale = 1.0 if wrong == "unscaled" else case["scale"]
    best, total, out = -math.inf, torch.zeros(()), torch.zeros(case["dim"]).double()
    for start in range(0, case["context"], case["tile"]):
        stop = min(start + case["tile"], case["context"])
        scores = keys[start:stop] @ q * scale
        v = values[start:stop]
        if wrong == "tail":
            missing = start + case["tile"] - stop
            scores = torch.cat([scores, torch.zeros(missing)])
            v = torch.cat([v, torch.zeros(missing, case["dim"])])
        newest = max(best, scores.max().item())
        shrink = math.exp(best - newest)
        weights = (scores - newest).exp()
        total = total * (1.0 if wrong in ("nothing shrinks", "the sum") else shrink)
        out = out * (1.0 if wrong in ("nothing shrinks", "the output") else shrink)
        if wrong == "last tile":
            total, out = total * 0, out * 0
        total, out, best = total + weights.sum(), out + weights @ v, newest
    return out if wrong == "undivided" else out / total


SHAPES: list[dict[str, Any]] = []


def _case(name: str, case: dict[str, Any]) -> Case:
    place = len(SHAPES)
    SHAPES.append(case)

    def run(solution: Any) -> None:
        found = results(solution)[place]
        told = f"{case['context']} keys in tiles of {case['tile']}"
        if "error" in found:
            raise Wrong(f"{told}: {found['error']}")
        got, expected = torch.tensor(found["out"]).double(), attention(case)
        off = (got - expected).abs().max().item()
        if not off < 1e-4:
            raise Wrong(
                f"{told}: the output is off by {off:.3g}, starting with {got[0].item():.4f}, "
                f"expected {expected[0].item():.4f}",
                got=got,
                expected=expected,
            )

    return Case(name, run, (case,))


_ONE, _FALLS, _RISES = "one whole tile", "the largest score comes first", "it comes last"
_TAIL, _LARGE = "a last tile that is not full", "scores of several hundred"

CASES = (
    _case(_ONE, shape(16)),
    _case(_FALLS, shape(64, peak=0)),
    _case(_RISES, shape(64, peak=3)),
    _case(_TAIL, shape(37)),
    _case(_LARGE, shape(64, size=300.0, peak=1)),
    _case("a single key", shape(1)),
    _case("other tiles, other heads", shape(70, tile=32, dim=32)),
)
NUM_DRAWN = 8
KEY = "46.online_softmax"


def _drawn_shape(draw: random.Random) -> dict[str, Any]:
    return shape(
        draw.randint(1, 100),
        tile=draw.choice((8, 16, 32)),
        dim=draw.choice((8, 16, 32)),
        size=draw.choice((0.5, 1.0, 4.0)),
        seed=draw.randrange(1000),
    )


# One process runs them all, so all have to be known when it starts: drawn as the check draws them.
_DRAWN = [
    _case("a drawn context", _drawn_shape(random.Random(f"{KEY}:{number}")))
    for number in range(NUM_DRAWN)
]


def _drawn(draw: random.Random) -> Case:
    wanted = _drawn_shape(draw)
    return next(case for case in _DRAWN if case.args == (wanted,))


def _like(wrong: str) -> Callable[[Sequence[Failure]], bool]:
    """Every failure is what that mistake gives."""

    def seen(failures: Sequence[Failure]) -> bool:
        return all(
            failure.got is not None
            and torch.allclose(failure.got, attention(failure.case.args[0], wrong), atol=1e-3)
            for failure in failures
        )

    return seen


def _overflows(failures: Sequence[Failure]) -> bool:
    large = [failure for failure in failures if failure.case.name == _LARGE]
    return len(large) == len(failures) and not large[0].got.isfinite().all()


def _reads_behind(failures: Sequence[Failure]) -> bool:
    def ragged(case: dict[str, Any]) -> bool:
        return bool(case["context"] % case["tile"])

    return all(
        ragged(failure.case.args[0]) and failure.got is not None and failure.got.isnan().all()
        for failure in failures
    )


def _score(solution: Any) -> Score:
    found = results(solution)
    yours = sum(each["bytes"] for each in found)
    # Every key and value once, the query and the output.
    best = sum(4 * case["dim"] * (2 * case["context"] + 2) for case in SHAPES)
    return Score(
        best / yours,
        f"{yours:,} bytes asked for over all contexts; reading every key and value once takes "
        f"{best:,}",
    )


WORKED = (labs_directory() / "solutions" / "46_online_softmax.py").read_text(encoding="utf-8")
WORKED = WORKED[WORKED.index("def attend") : WORKED.index("\n\n\n# The engine")]


def _changed(*changes: tuple[str, str]) -> Written:
    source = WORKED
    for old, new in changes:
        if old not in source:
            raise ValueError(f"the worked solution of chapter 46 no longer has {old!r}")
        source = source.replace(old, new)
    return Written(source)


EXERCISE = Exercise(
    key=KEY,
    title="Attention in one pass",
    task="Return the attention of one query over `context` keys, reading KEYS of them at a time "
    "and each only once. Your function runs as a Triton kernel, in Triton's interpreter.",
    function="attend",
    cases=CASES,
    random_case=_drawn,
    num_random=NUM_DRAWN,
    time_limit_s=LIMIT_S + 30,
    hints=(
        "Carry three things from tile to tile: the largest score so far (-inf at first), the sum "
        "of exponentials (0.0) and the weighted sum of values (tl.zeros([DIM], tl.float32)).",
        "A tile: key = start + tl.arange(0, KEYS); load rows key of keys with "
        "mask=(key < context)[:, None], other=0.0; scores = tl.sum(k * q[None, :], 1) * scale; "
        "where there is no key, the score is -inf (tl.where).",
        "newest = tl.maximum(best, tl.max(scores, 0)). Multiply both sums by tl.exp(best - "
        "newest) before you add the tile's tl.exp(scores - newest). Divide once, at the end.",
    ),
    misconceptions=(
        Misconception(
            "nothing shrinks",
            "Your sums do not shrink when the maximum moves. What earlier tiles added was "
            "exp(score - old maximum): multiply it by exp(old - new).",
            _like("nothing shrinks"),
        ),
        Misconception(
            "the output",
            "You shrink the sum of exponentials but not the output. Both were added up under the "
            "old maximum, so both shrink.",
            _like("the output"),
        ),
        Misconception(
            "the sum",
            "You shrink the output but not the sum of exponentials. Both were added up under the "
            "old maximum, so both shrink.",
            _like("the sum"),
        ),
        Misconception(
            "tail",
            "Keys that are not there count: a score of 0 is no neutral score, because exp(0) is 1. "
            "Where key >= context the score must be -inf.",
            _like("tail"),
        ),
        Misconception(
            "behind",
            "You read behind the last key. What lies there was never written; give the loads a "
            "mask, and other=0.0.",
            _reads_behind,
        ),
        Misconception(
            "overflow",
            "You take exp(score) as it is. Beyond a score of 88 that is infinite in float32: "
            "subtract the largest score so far first.",
            _overflows,
        ),
        Misconception(
            "unscaled",
            "You forgot the scale: scores are multiplied by it before the softmax.",
            _like("unscaled"),
        ),
        Misconception(
            "undivided",
            "You return the weighted sum. It becomes an average when it is divided by the sum of "
            "the weights.",
            _like("undivided"),
        ),
    ),
    score=_score,
    wrong={
        "nothing shrinks": _changed((" * shrink", "")),
        "the output": _changed(("out = out * shrink", "out = out")),
        "the sum": _changed(("total = total * shrink", "total = total")),
        "tail": _changed(('scores = tl.where(inside, scores, float("-inf"))', "")),
        "behind": _changed((", mask=inside[:, None], other=0.0", "")),
        "overflow": _changed(
            ("tl.exp(scores - newest)", "tl.exp(scores)"), ("tl.exp(best - newest)", "1.0")
        ),
        "unscaled": _changed(("tl.sum(k * q[None, :], 1) * scale", "tl.sum(k * q[None, :], 1)")),
        "undivided": _changed(("return out / total", "return out")),
    },
)
