"""Chapter 46: the inner loop of attention with an online softmax, run in Triton's interpreter."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from widgets.panels import Case, Exercise, Misconception, Picture, Wrong
from widgets.panels.exercises.exercise import labs_directory, load_module

kernels = load_module(Path(__file__).with_name("_kernels.py"))
inputs: Callable[[dict[str, Any]], tuple[Tensor, Tensor, Tensor]] = kernels.inputs


def shape(
    context: int, tile: int = 16, dim: int = 32, size: float = 1.0, peak: int | None = None,
    seed: int = 46,
) -> dict[str, Any]:  # fmt: skip
    """A case in numbers; see `_interpreted.inputs`.

    In the fixed cases KEYS is not DIM: a block along the wrong axis then does not fit. Where both
    are equal, it would only give wrong numbers.
    """
    return {"context": context, "tile": tile, "dim": dim, "size": size, "peak": peak, "seed": seed,
            "scale": dim**-0.5}  # fmt: skip


class Mistake:
    """What a mistake comes to, worked out from the definition: no kernel has to run for it."""

    def __init__(self, name: str, keys: int = 1, values: int = 1) -> None:
        self.name, self.keys, self.values = name, keys, values

    def results(self) -> list[dict[str, Any]]:
        """As the interpreter's process gives them."""
        return [
            {
                "out": attention(case, self.name).tolist(),
                "bytes": 4 * case["dim"] * ((self.keys + self.values) * case["context"] + 2),
                "widest": case["tile"] * case["dim"],
                "loads": (self.keys + self.values) * num_tiles(case),
            }
            for case in SHAPES
        ]


def results(solution: Any) -> list[dict[str, Any]]:
    """What a solution makes of every shape."""
    if isinstance(solution, Mistake):
        return solution.results()
    found: list[dict[str, Any]] = kernels.results(solution, SHAPES)
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
        if wrong == "skipped" and stop < start + case["tile"]:
            break
        if wrong == "behind" and stop < start + case["tile"]:
            return torch.full((case["dim"],), math.nan).double()
        if wrong == "tail":
            missing = start + case["tile"] - stop
            scores = torch.cat([scores, torch.zeros(missing)])
            v = torch.cat([v, torch.zeros(missing, case["dim"])])
        # A kernel's exponentials are float32: they overflow where it forgets the maximum.
        newest = 0.0 if wrong == "overflow" else max(best, scores.max().item())
        if wrong == "own maximum":
            newest = scores.max().item()
        shrink = 1.0 if wrong == "overflow" else torch.tensor(best - newest).exp().item()
        weights = (scores - newest).float().exp().double()
        total = total * (1.0 if wrong in ("nothing shrinks", "the sum") else shrink)
        out = out * (1.0 if wrong in ("nothing shrinks", "the output") else shrink)
        total, out, best = total + weights.sum(), out + weights @ v, newest
    return out if wrong == "undivided" else out / total


SHAPES: list[dict[str, Any]] = []
ALLOWED = 1e-4
LOADS_A_TILE = 2
"""Allowed for the keys of a tile, and as many for its values: one is enough."""


def num_tiles(case: dict[str, Any]) -> int:
    """Tiles of a case's context, the last one perhaps not full."""
    return int(-(-case["context"] // case["tile"]))


def least_bytes(case: dict[str, Any]) -> int:
    """Every key and value once, the query and the output."""
    return int(4 * case["dim"] * (2 * case["context"] + 2))


def _case(name: str, case: dict[str, Any]) -> Case:
    place = len(SHAPES)
    SHAPES.append(case)

    def run(solution: Any) -> None:
        found = results(solution)[place]
        kernels.raise_what_broke(solution, found)
        told = f"attend(context={case['context']}, KEYS={case['tile']}, DIM={case['dim']})"
        got, expected = torch.tensor(found["out"]).double(), attention(case)
        off = (got - expected).abs().max().item()
        if not off < ALLOWED:
            raise Wrong(
                f"`{told}`: the output {_off(off)}; it starts with {got[0].item():.4f}, expected "
                f"{expected[0].item():.4f}",
                got=got.tolist(),
            )
        # A tile of each may be loaded beyond the last key, where nothing is used of it.
        least, spare = least_bytes(case), 2 * 4 * case["dim"] * case["tile"]
        if found["bytes"] > least + spare:
            raise Wrong(
                f"`{told}`: the output is right, but {found['bytes']:,} bytes were loaded and "
                f"stored, where each key and value once takes {least:,}",
                got=("bytes", found["bytes"]),
            )

        if found["widest"] > case["tile"] * case["dim"]:
            raise Wrong(
                f"`{told}`: the output is right, but one load takes "
                f"{found['widest'] // case['dim']} keys at once, and KEYS is {case['tile']}",
                got=("widest", found["widest"]),
            )
        tiles = num_tiles(case)
        if found["loads"] > 2 * LOADS_A_TILE * tiles:
            raise Wrong(
                f"`{told}`: the output is right, but {found['loads']} loads read {tiles} "
                f"{'tile' if tiles == 1 else 'tiles'} of {case['tile']} keys: take KEYS keys with "
                "one load",
                got=("loads", found["loads"]),
            )

    return Case(name, run)


def _off(off: float) -> str:
    if math.isnan(off):
        return "holds NaN (not a number)"
    return f"is off by {off:.3g}, and {ALLOWED:g} is allowed"


CASES = (
    _case("one whole tile", shape(16)),
    _case("the largest score comes first", shape(64, peak=0)),
    _case("it comes last", shape(64, peak=3)),
    _case("a last tile that is not full", shape(37, seed=58)),
    _case("scores of several hundred", shape(64, size=300.0, peak=1)),
    _case("a single key", shape(1)),
    _case("other tiles, other heads", shape(70, tile=32, dim=16)),
    _case("a single tile, scores of several hundred", shape(16, size=300.0)),
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


_DRAWN: dict[str, Case] = {}


def _drawn(draw: random.Random) -> Case:
    """One process runs all cases: a drawn one joins them when it is drawn, before any is run."""
    wanted = _drawn_shape(draw)
    name = str(wanted)
    if name not in _DRAWN:
        _DRAWN[name] = _case("a drawn context", wanted)
    return _DRAWN[name]


def _worked() -> str:
    """The worked solution's source; "" in a copy of the lab without solutions."""
    path = labs_directory() / "solutions" / "46_online_softmax.py"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return text[text.find("def attend") : text.find("\n\n\n# The engine")]


WORKED = _worked()


def _changed(*changes: tuple[str, str]) -> tuple[Any, ...]:
    """The worked solution with a mistake, for tests; nothing where there is none."""
    if not WORKED:
        return ()
    source = WORKED
    for old, new in changes:
        if old not in source:
            raise ValueError(f"the worked solution of chapter 46 no longer has {old!r}")
        source = source.replace(old, new)
    return (kernels.written(source),)


TWO_PASSES = """
def attend(q, keys, values, context, scale, KEYS, DIM):
    column = tl.arange(0, DIM)
    best = float("-inf")
    for start in range(0, context, KEYS):
        key = start + tl.arange(0, KEYS)
        place = key[:, None] * DIM + column[None, :]
        k = tl.load(keys + place, mask=(key < context)[:, None], other=0.0)
        scores = tl.where(key < context, tl.sum(k * q[None, :], 1) * scale, float("-inf"))
        best = tl.maximum(best, tl.max(scores, 0))
    total = 0.0
    out = tl.zeros([DIM], tl.float32)
    for start in range(0, context, KEYS):
        key = start + tl.arange(0, KEYS)
        place = key[:, None] * DIM + column[None, :]
        k = tl.load(keys + place, mask=(key < context)[:, None], other=0.0)
        scores = tl.where(key < context, tl.sum(k * q[None, :], 1) * scale, float("-inf"))
        weights = tl.exp(scores - best)
        v = tl.load(values + place, mask=(key < context)[:, None], other=0.0)
        total += tl.sum(weights, 0)
        out += tl.sum(weights[:, None] * v, 0)
    return out / total
"""


EXERCISE = Exercise(
    key=KEY,
    title="Attention in one pass",
    task="Return the attention of one query over `context` keys, reading KEYS of them at a time "
    "and each only once: the bytes are counted. Your function runs as a Triton kernel, in Triton's "
    "interpreter; the output may be off by 0.0001.",
    function="attend",
    parameters=("q", "keys", "values", "context", "scale", "KEYS", "DIM"),
    cases=CASES,
    random_case=_drawn,
    num_random=NUM_DRAWN,
    called=False,
    tolerance=1e-3,
    time_limit_s=5.0,
    start_s=kernels.START_S + 30,
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
            (Mistake("nothing shrinks"),),
            written=_changed((" * shrink", "")),
        ),
        Misconception(
            "the output",
            "You shrink the sum of exponentials but not the output. Both were added up under the "
            "old maximum, so both shrink.",
            (Mistake("the output"),),
            written=_changed(("out = out * shrink", "out = out")),
        ),
        Misconception(
            "the sum",
            "You shrink the output but not the sum of exponentials. Both were added up under the "
            "old maximum, so both shrink.",
            (Mistake("the sum"),),
            written=_changed(("total = total * shrink", "total = total")),
        ),
        Misconception(
            "two passes",
            "You read the keys more than once: first for the largest score, then for the sums. The "
            "online softmax needs one pass: shrink both sums when a larger score comes.",
            (
                Mistake("two passes", keys=2),
                Mistake("two passes", keys=2, values=2),
                Mistake("two passes", keys=3),
            ),
            written=(kernels.written(TWO_PASSES.strip()),),
        ),
        Misconception(
            "tail",
            "Keys that are not there count: a score of 0 is not neutral, because exp(0) is 1. "
            "Where key >= context the score must be -inf.",
            (Mistake("tail"),),
            written=_changed(('scores = tl.where(inside, scores, float("-inf"))', "")),
        ),
        Misconception(
            "behind",
            "You read behind the last key. What lies there was never written: load with a mask, "
            "key < context, and other=0.0.",
            (Mistake("behind"),),
            written=_changed((", mask=inside[:, None], other=0.0", "")),
        ),
        Misconception(
            "overflow",
            "You take exp(score) as it is. Beyond a score of 88 that is infinite in float32: "
            "subtract the largest score so far first.",
            (Mistake("overflow"),),
            written=_changed(
                ("tl.exp(scores - newest)", "tl.exp(scores)"), ("tl.exp(best - newest)", "1.0")
            ),
        ),
        Misconception(
            "own maximum",
            "You subtract each tile's own maximum, even where an earlier tile had a larger one. "
            "exp(old - new) then grows, and overflows. The running maximum is the larger of both.",
            (Mistake("own maximum"),),
            written=_changed(("tl.maximum(best, tl.max(scores, 0))", "tl.max(scores, 0)")),
        ),
        Misconception(
            "skipped",
            "You leave out the last tile where it is not full. Let the loop go up to context in "
            "steps of KEYS, and mask the keys that are not there.",
            (Mistake("skipped"),),
            written=_changed(("range(0, context, KEYS)", "range(0, context // KEYS * KEYS, KEYS)")),
        ),
        Misconception(
            "unscaled",
            "You forgot the scale: scores are multiplied by it before the softmax.",
            (Mistake("unscaled"),),
            written=_changed(
                ("tl.sum(k * q[None, :], 1) * scale", "tl.sum(k * q[None, :], 1)"),
            ),
        ),
        Misconception(
            "undivided",
            "You return the weighted sum. It becomes an average when it is divided by the sum of "
            "the weights.",
            (Mistake("undivided"),),
            written=_changed(("return out / total", "return out")),
        ),
    ),
    picture=Picture(
        "The output over 37 keys", "element", "value", lambda solution: results(solution)[3]["out"]
    ),
)
