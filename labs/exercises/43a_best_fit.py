"""Chapter 43a: where a request that needs neighbouring pages is placed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from minserve.bench.runs.memory import LADDER, RUNGS, longest_of
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.heavy_tail import heavy_tail
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traces import to_traffic
from minserve.build import build_virtual_engine
from minserve.hardware import DEVICES
from minserve.trace import RunTotals
from minserve.virtual import CostModel
from widgets.panels import Case, Exercise, Failure, Misconception, Score, Wrong

Rule = Callable[[list[int], int], "int | None"]

SPEC = SHAPES["llama-3.1-8b"].spec()
COST = CostModel(DEVICES["A100 80GB SXM"], efficiency=0.5, overhead_s=2e-4)
PAGES = 40


def holes(free: Sequence[int]) -> list[tuple[int, int]]:
    """(first page, size) of every run of neighbouring free pages."""
    found: list[tuple[int, int]] = []
    for page in free:
        if found and sum(found[-1]) == page:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((page, 1))
    return found


def best_fit(free: Sequence[int], need: int) -> int | None:
    """The smallest hole that is large enough, the lowest where several are."""
    fitting = [(size, first) for first, size in holes(free) if size >= need]
    return min(fitting)[1] if fitting else None


def serve(rule: Rule | None, layout: str = "contiguous") -> RunTotals:
    """The real scheduler over real pages, placed by the rule; time is modelled."""
    traffic = to_traffic(heavy_tail(1.0, 48), vocab_size=SPEC.vocab_size)
    page_bytes = LADDER.memory.block_size * SPEC.kv_bytes_per_token(2)
    config = LADDER.with_values(
        {
            **RUNGS["continuous, power of two"],
            "memory.layout": layout,
            "memory.kv_bytes": PAGES * page_bytes,
            "scheduling.max_model_len": longest_of(traffic),
            "memory.check_integrity": True,
        }
    )
    engine = build_virtual_engine(SPEC, config, COST)
    if rule is not None:
        pool = engine.memory.pool

        def find_hole(count: int) -> int | None:
            return _answer(rule, pool.free_blocks(), count)

        pool.find_hole = find_hole  # type: ignore[method-assign]
    drive(engine, traffic)
    return engine.trace.totals


def _answer(rule: Rule, free: list[int], need: int) -> int | None:
    answer = rule(list(free), need)
    if answer is None:
        if any(size >= need for _, size in holes(free)):
            raise Wrong(f"it returned None for {need} pages, and {free} has a hole for them")
        return None
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise Wrong(f"it returned {answer!r}, expected a page number or None", got=answer)
    missing = [page for page in range(answer, answer + need) if page not in free]
    if missing:
        raise Wrong(
            f"it placed {need} pages at {answer} with {free} free: page {missing[0]} is taken",
            got=answer,
        )
    return answer


def _engine_case() -> Case:
    return Case("a whole trace through the engine", lambda rule: serve(rule) and None)


def _drawn(draw: random.Random) -> Case:
    free = [page for page in range(24) if draw.random() < 0.6]
    need = draw.randint(1, 6)
    return Case.call(f"{need} pages of {free}", (free, need), best_fit(free, need))


_ONE, _APART, _TIGHT = "one hole, more than large enough", "enough pages, but apart", "a tight hole"
_LAST, _LOWEST, _NONE = "the last hole", "two equal holes", "nothing is free"

CASES = (
    Case.call(_ONE, ([2, 3, 4, 5], 3), 2),
    Case.call(_APART, ([0, 2, 3, 6, 7], 3), None),
    Case.call(_TIGHT, ([0, 1, 2, 5, 6, 7, 8, 9, 12, 13], 2), 12),
    Case.call(_LAST, ([0, 3, 4, 8, 9, 10], 3), 8),
    Case.call(_LOWEST, ([1, 2, 5, 6, 9], 2), 1),
    Case.call(_NONE, ([], 1), None),
    _engine_case(),
)


def _answers(case_name: str, got: object) -> Callable[[Sequence[Failure]], bool]:
    return lambda failures: any(f.case.name == case_name and f.got == got for f in failures)


def _score(rule: Rule) -> Score:
    yours, best = serve(rule), serve(best_fit)
    first, paged = serve(None), serve(None, "paged")
    return Score(
        best.steps / yours.steps,
        f"{yours.steps} steps for the trace; best fit takes {best.steps}, first fit {first.steps}, "
        f"and pages that need not be neighbours {paged.steps}",
    )


def _sum(free: list[int], need: int) -> int | None:
    return free[0] if len(free) >= need else None


def _exact(free: list[int], need: int) -> int | None:
    return next((first for first, size in holes(free) if size == need), None)


def _no_last(free: list[int], need: int) -> int | None:
    fitting = [(size, first) for first, size in holes(free)[:-1] if size >= need]
    return min(fitting)[1] if fitting else None


def _first(free: list[int], need: int) -> int | None:
    return next((first for first, size in holes(free) if size >= need), None)


def _largest(free: list[int], need: int) -> int | None:
    size, first = max(((size, -first) for first, size in holes(free)), default=(0, 0))
    return -first if size >= need else None


EXERCISE = Exercise(
    key="43a.best_fit",
    title="Find a hole",
    task="free is the ascending list of free page numbers. Return the first page of the smallest "
    "run of neighbours with at least need pages, the lowest of equal ones; None if there is none.",
    function="place",
    cases=CASES,
    random_case=_drawn,
    num_random=16,
    hints=(
        "Neighbours differ by one: a hole ends where free[i + 1] != free[i] + 1, or the list ends.",
        "Collect (size, first page) of every hole, then keep those with size >= need.",
        "min() over (size, first page) is the smallest hole, and the lowest of equal ones.",
    ),
    misconceptions=(
        Misconception(
            "sum",
            "You count free pages, wherever they are. That is the promise of paging; contiguous "
            "memory needs neighbours, and free pages that are none are external fragmentation.",
            _answers(_APART, 0),
        ),
        Misconception(
            "exact",
            "You accept only a hole of exactly the size wanted. A larger one does as well; what "
            "is left of it stays a hole.",
            lambda failures: (
                any(f.case.name == _ONE and f.got is None for f in failures)
                and not _answers(_LAST, None)(failures)
            ),
        ),
        Misconception(
            "last",
            "You never look at the last hole: it ends with the list, not with a gap.",
            _answers(_LAST, None),
        ),
        Misconception(
            "largest",
            "You cut from the largest hole (worst fit). The next long request then finds none.",
            _answers(_TIGHT, 5),
        ),
        Misconception(
            "first",
            "You take the first hole that is large enough (first fit, the engine's own rule), and "
            "not the smallest: a large hole is broken up for a small request.",
            _answers(_TIGHT, 0),
        ),
    ),
    score=_score,
    wrong={
        "sum": _sum,
        "exact": _exact,
        "last": _no_last,
        "largest": _largest,
        "first": _first,
    },
)
