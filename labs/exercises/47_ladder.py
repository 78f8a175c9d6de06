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
from widgets.panels import Case, Exercise, Misconception, Picture, Score, Wrong
from widgets.panels.exercises.returns import WHOLE_NUMBERS, shortened

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
    shapes = sorted(set(rule(list(rows), most)))
    shown = f"for {_words(rows)} and most={most} it returned {shortened(shapes)}"
    if len(shapes) > most:
        raise Wrong(f"{shown}: {len(shapes)} shapes, where {most} may be compiled", got=shapes)
    if not shapes or shapes[-1] < max(rows):
        raise Wrong(f"{shown}: a step of {max(rows)} rows fits in none", got=shapes)
    if shapes[0] < 1:
        raise Wrong(f"{shown}: a shape has at least one row", got=shapes)
    return shapes


def _asked(name: str, rows: Sequence[int], most: int) -> Case:
    def run(rule: Rule) -> None:
        shapes = _answer(rule, rows, most)
        padding, best = waste(rows, shapes), waste(rows, least(rows, most))
        if padding > WITHIN * best:
            raise Wrong(
                f"for {_words(rows)} and most={most} it returned {shortened(shapes)}, which adds "
                f"{padding:,} rows of padding; {best:,} is possible, and {WITHIN * best:,.0f} "
                "would do",
                got=shapes,
            )

    return Case(name, run)


def _words(rows: Sequence[int]) -> str:
    counts = sorted(Counter(rows).items())
    shown = ", ".join(f"{size} ({times} times)" for size, times in counts[:6])
    return f"rows=[{shown}{', ...' if len(counts) > 6 else ''}]"


def _drawn(draw: random.Random) -> Case:
    centres = [draw.randint(1, 400) for _ in range(draw.randint(2, 6))]
    rows = [max(1, c + draw.randint(-c // 4, c // 4)) for c in centres for _ in range(12)]
    return _asked(f"{len(centres)} clusters", rows, draw.randint(2, 6))


CASES = (
    _asked("three clusters", [9] * 20 + [10] * 20 + [17] * 20 + [130] * 4, 3),
    _asked("many short, few long", [4] * 60 + [100] * 2 + [200] * 2 + [300] * 2, 3),
    _asked("frequent, and close together", [7] * 30 + [8] * 29 + [50] * 9 + [100] * 3, 3),
    _asked("a shape for every size", [3, 8, 8, 21], 3),
    _asked("one shape", [5, 6, 40], 1),
    Case("the steps of an engine", lambda rule: _engine_case().run(rule)),
)


def _engine_case() -> Case:
    return _asked("", engine_rows(), SCORED_SHAPES)


def _score(rule: Rule) -> Score:
    rows = engine_rows()
    best = sum(rows) + waste(rows, least(rows, SCORED_SHAPES))
    yours = sum(rows) + waste(rows, _answer(rule, rows, SCORED_SHAPES))
    powers = sum(1 << (n - 1).bit_length() for n in rows)
    return Score(
        # 0 is a ladder of powers of two, 1 the least there can be.
        (powers - yours) / (powers - best),
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


def _greedy(rows: list[int], most: int) -> list[int]:
    """Every size a shape at first; then the one whose loss pads least goes, until few are left."""
    counts = Counter(rows)
    shapes = sorted(counts)
    served = {shape: counts[shape] for shape in shapes}
    while len(shapes) > most:
        costs = [served[low] * (high - low) for low, high in pairwise(shapes)]
        at = costs.index(min(costs))
        served[shapes[at + 1]] += served[shapes[at]]
        del shapes[at]
    return shapes


def _coarse(rows: list[int], most: int) -> list[int]:
    """The best ladder with every rung raised as far as the limit allows."""
    shapes = least(rows, most)
    allowed = WITHIN * waste(rows, shapes)
    for _ in range(max(rows)):
        raised = [*(shape + 1 for shape in shapes[:-1]), shapes[-1]]
        if len(set(raised)) < len(raised) or waste(rows, raised) > allowed:
            break
        shapes = raised
    return shapes


def _staircase(rule: Rule) -> list[float]:
    shapes = sorted(set(rule(list(engine_rows()), SCORED_SHAPES)))
    fitting = [next((each for each in shapes if each >= n), None) for n in SIZES]
    return [each for each in fitting if each is not None]


SIZES = tuple(float(n) for n in sorted(set(engine_rows())))

EXERCISE = Exercise(
    key="47.ladder",
    title="A ladder of shapes",
    task="Return at most `most` row counts to compile for. Every step takes the smallest it fits "
    "in; the padding of all steps may be at most a fifth above the least possible.",
    function="ladder",
    parameters=("rows", "most"),
    returns=WHOLE_NUMBERS,
    cases=CASES,
    random_case=_drawn,
    hints=(
        "The largest step must fit. And a shape that is no step's own size can be lowered to the "
        "next size below it, for less padding: only sizes that occur are candidates.",
        "Sort the sizes. The top shape serves a range of them, from some size up to the largest; "
        "the sizes below that range are the same question with one shape fewer.",
        "best(upto, left) = the least over start of best(start, left - 1) + padding of sizes start "
        "to upto at the top one. functools.cache makes it fast. Keep the shapes beside the cost.",
    ),
    misconceptions=(
        Misconception(
            "powers of two",
            "You take powers of two, whatever the steps are. That ladder pads each step by less "
            "than its own size for any traffic; if you know the traffic, fewer shapes do better.",
            (
                _powers,
                lambda rows, most: _powers(rows, most)[-most:],
                lambda rows, most: _powers(rows, most)[:most],
            ),
        ),
        Misconception(
            "every size",
            "You compile for every size that occurs. Nothing is padded then, and every new size is "
            "another compilation: that is what `most` forbids.",
            (lambda rows, most: sorted(set(rows)),),
        ),
        Misconception(
            "no top",
            "Your largest shape is smaller than the largest step, which then fits in none. The top "
            "is no choice: the largest size is one of your shapes, and the others are yours.",
            (
                lambda rows, most: least(rows, most + 1)[:-1],
                lambda rows, most: sorted(set(rows))[:most],
                lambda rows, most: list(dict.fromkeys(rows))[:most],
                lambda rows, most: [n for n, _ in Counter(rows).most_common(most)],
                lambda rows, most: [max(rows) * place // most or 1 for place in range(most)],
                lambda rows, most: [sorted(rows)[len(rows) * n // most] for n in range(most)],
            ),
        ),
        Misconception(
            "largest sizes",
            "You keep the largest sizes. Nothing is too large for them, and every step below, "
            "which is most of them, is padded up to the smallest of these few.",
            (lambda rows, most: sorted(set(rows))[-most:], lambda rows, most: [max(rows)]),
        ),
        Misconception(
            "equal widths",
            "You space the shapes evenly up to the largest step. Most steps are small, and all of "
            "them then share the first, far too large shape.",
            (
                _widths,
                lambda rows, most: [max(rows) * (place + 1) // most for place in range(most)],
            ),
        ),
        Misconception(
            "equal counts",
            "You give every shape the same number of steps. A step that is rare can be long, and "
            "padding is counted in rows, not in steps.",
            (_quantiles,),
        ),
        Misconception(
            "most frequent",
            "You take the commonest sizes. Two that are close together need only one shape, and "
            "the rare size left over pays for it.",
            (_frequent,),
        ),
    ),
    score=_score,
    naive={"greedy": _greedy, "rungs raised": _coarse},
    picture=Picture(
        "The shape that each size of step takes",
        "rows of the step",
        "rows computed",
        _staircase,
        SIZES,
    ),
)
