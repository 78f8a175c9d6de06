"""Chapter 47: which few row counts to compile for, so that rounding up wastes little."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.build import build_virtual_engine
from minserve.config import EngineConfig
from minserve.hardware import DEVICES
from minserve.virtual import CostModel
from widgets.panels import Case, Exercise, Failure, Misconception, Score, Wrong

Rule = Callable[[list[int], int], "Iterable[int]"]

WITHIN = 1.2
"""Padding allowed, over the least there can be."""
SCORED_SHAPES = 6


def waste(rows: Sequence[int], shapes: Iterable[int]) -> int:
    """Padded rows where every step takes the smallest shape it fits in."""
    ordered = sorted(shapes)
    return sum(next(shape for shape in ordered if shape >= n) - n for n in rows)


def least(rows: Sequence[int], most: int) -> list[int]:
    """The shapes that waste least: a shape that is no step's own count could only be lower."""
    counts = Counter(rows)
    sizes = sorted(counts)

    @cache
    def best(upto: int, left: int) -> tuple[int, tuple[int, ...]]:
        """(padding, shapes) of the `upto` smallest sizes with at most `left` shapes."""
        if not upto:
            return 0, ()
        if not left:
            return 10**12, ()
        top = sizes[upto - 1]
        found, padding = [], 0
        for start in range(upto - 1, -1, -1):
            padding += counts[sizes[start]] * (top - sizes[start])
            before, shapes = best(start, left - 1)
            found.append((before + padding, (*shapes, top)))
        return min(found)

    return list(best(len(sizes), most)[1])


@cache
def engine_rows() -> tuple[int, ...]:
    """Rows of every step of a real scheduler's run; time is modelled."""
    draw = random.Random(47)
    lengths = [(round(draw.lognormvariate(4, 1)) + 1, draw.randint(4, 80)) for _ in range(160)]
    config = EngineConfig().with_values(
        {"scheduling.max_num_seqs": 24, "scheduling.max_num_batched_tokens": 512}
    )
    spec = SHAPES["llama-3.1-8b"].spec()
    engine = build_virtual_engine(spec, config, CostModel(DEVICES["H100 SXM"], efficiency=0.5))
    drive(engine, at_once([[1] * n for n, _ in lengths], [fixed_length(n) for _, n in lengths]))
    return tuple(step.num_tokens for step in engine.trace.steps)


def _answer(rule: Rule, rows: Sequence[int], most: int) -> list[int]:
    answer = rule(list(rows), most)
    try:
        shapes = sorted(set(answer))
    except TypeError:
        raise Wrong(f"it returned {answer!r}, expected a list of row counts") from None
    if not all(isinstance(shape, int) and not isinstance(shape, bool) for shape in shapes):
        raise Wrong(f"it returned {answer!r}, expected whole numbers of rows")
    if len(shapes) > most:
        raise Wrong(f"{len(shapes)} shapes, where {most} may be compiled", got=shapes)
    if not shapes or shapes[-1] < max(rows):
        raise Wrong(f"a step of {max(rows)} rows fits none of {shapes}", got=shapes)
    return shapes


def _asked(name: str, rows: Sequence[int], most: int) -> Case:
    def run(rule: Rule) -> None:
        shapes = _answer(rule, rows, most)
        padding, best = waste(rows, shapes), waste(rows, least(rows, most))
        if padding > WITHIN * best:
            raise Wrong(
                f"{most} shapes for {_words(rows)}: {shapes} adds {padding:,} rows of padding, "
                f"where {best:,} would do",
                got=shapes,
                expected=best,
            )

    return Case(name, run, (tuple(rows), most))


def _words(rows: Sequence[int]) -> str:
    counts = sorted(Counter(rows).items())
    shown = ", ".join(f"{times} of {size}" for size, times in counts[:6])
    return f"steps of so many rows: {shown}" + (", ..." if len(counts) > 6 else "")


def _drawn(draw: random.Random) -> Case:
    centres = [draw.randint(1, 400) for _ in range(draw.randint(2, 6))]
    rows = [max(1, c + draw.randint(-c // 4, c // 4)) for c in centres for _ in range(12)]
    return _asked(f"{len(centres)} clusters", rows, draw.randint(2, 6))


_CLUSTERS, _TAIL, _NEAR = "three clusters", "many short, few long", "frequent, and close together"
_ENOUGH, _ONE = "a shape for every size", "one shape"

CASES = (
    _asked(_CLUSTERS, [9] * 20 + [10] * 20 + [17] * 20 + [130] * 4, 3),
    _asked(_TAIL, [4] * 60 + [100] * 2 + [200] * 2 + [300] * 2, 3),
    _asked(_NEAR, [7] * 30 + [8] * 29 + [50] * 9 + [100] * 3, 3),
    _asked(_ENOUGH, [3, 8, 8, 21], 3),
    _asked(_ONE, [5, 6, 40], 1),
    Case("the steps of an engine", lambda rule: _engine_case().run(rule)),
)


def _engine_case() -> Case:
    return _asked("", engine_rows(), SCORED_SHAPES)


def _got(failures: Sequence[Failure], name: str) -> list[int]:
    return next((f.got for f in failures if f.case.name == name and f.got), [])


def _evenly(shapes: Sequence[int]) -> bool:
    gaps = [high - low for low, high in pairwise((0, *shapes))]
    return len(gaps) > 2 and max(gaps) - min(gaps) <= 2


def _score(rule: Rule) -> Score:
    rows = engine_rows()
    best = sum(rows) + waste(rows, least(rows, SCORED_SHAPES))
    yours = sum(rows) + waste(rows, _answer(rule, rows, SCORED_SHAPES))
    powers = sum(1 << (n - 1).bit_length() for n in rows)
    return Score(
        best / yours,
        f"{yours:,} rows computed for {sum(rows):,} tokens with {SCORED_SHAPES} shapes; the worked "
        f"solution computes {best:,}, powers of two {powers:,}",
    )


def _powers(rows: list[int], most: int) -> list[int]:
    return sorted({1 << (n - 1).bit_length() for n in rows})


def _widths(rows: list[int], most: int) -> list[int]:
    return [math.ceil(max(rows) * (place + 1) / most) for place in range(most)]


def _quantiles(rows: list[int], most: int) -> list[int]:
    ordered = sorted(rows)
    return [ordered[math.ceil(len(rows) * (n + 1) / most) - 1] for n in range(most)]


def _frequent(rows: list[int], most: int) -> list[int]:
    others = Counter(n for n in rows if n < max(rows))
    return [max(rows), *(n for n, _ in others.most_common(most - 1))]


EXERCISE = Exercise(
    key="47.ladder",
    title="A ladder of shapes",
    task="Return at most `most` row counts to compile for. Every step takes the smallest it fits "
    "in; the padding of all steps may be at most a fifth above the least possible.",
    function="ladder",
    cases=CASES,
    random_case=_drawn,
    hints=(
        "The largest step must fit. And a shape that is no step's own size can be lowered to the "
        "next size below it, for less padding: only sizes that occur are candidates.",
        "Sort the sizes. The top shape serves a stretch of them, from some size up to the largest; "
        "the sizes below that stretch are the same question with one shape fewer.",
        "best(upto, left) = the least over start of best(start, left - 1) + padding of sizes start "
        "to upto at the top one. functools.cache makes it fast. Keep the shapes beside the cost.",
    ),
    misconceptions=(
        Misconception(
            "powers of two",
            "You take powers of two, whatever the steps are. That ladder bounds the waste at half "
            "for any traffic; knowing the traffic you can do better with fewer shapes.",
            lambda failures: (
                bool(_got(failures, _CLUSTERS))
                and all(shape & (shape - 1) == 0 for shape in _got(failures, _CLUSTERS))
            ),
        ),
        Misconception(
            "every size",
            "You compile for every size that occurs. Nothing is padded then, and every new size is "
            "another compilation: that is what `most` forbids.",
            lambda failures: any(
                f.got and len(f.got) > f.case.args[1] for f in failures if f.case.args
            ),
        ),
        Misconception(
            "no top",
            "Your largest shape is smaller than the largest step, which then fits nowhere.",
            lambda failures: any(
                f.got is not None and (not f.got or max(f.got) < max(f.case.args[0]))
                for f in failures
                if f.case.args
            ),
        ),
        Misconception(
            "equal widths",
            "You space the shapes evenly up to the largest step. Most steps are small, and all of "
            "them then share the first, far too large shape.",
            lambda failures: _evenly(_got(failures, _CLUSTERS)),
        ),
        Misconception(
            "equal counts",
            "You give every shape the same number of steps. A step that is rare can be long, and "
            "padding is counted in rows, not in steps.",
            lambda failures: _got(failures, _TAIL) == [4, 300],
        ),
        Misconception(
            "most frequent",
            "You take the commonest sizes. Two that are close together need only one shape, and "
            "the rare size left over pays for it.",
            lambda failures: _got(failures, _NEAR) == [7, 8, 100],
        ),
    ),
    score=_score,
    wrong={
        "powers of two": _powers,
        "every size": lambda rows, most: sorted(set(rows)),
        "no top": lambda rows, most: least(rows, most + 1)[:-1],
        "equal widths": _widths,
        "equal counts": _quantiles,
        "most frequent": _frequent,
    },
)
