"""Chapter 45a: the rule that lets a waiting request into the batch, without a single preemption."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.build import build_virtual_engine
from minserve.config import EngineConfig
from minserve.engine.parts import EngineParts
from minserve.hardware import DEVICES
from minserve.request import Request
from minserve.scheduling import AdmissionView, BatchingPolicy, ContinuousBatching
from minserve.scheduling.policies.batching import AdmissionError
from minserve.trace import RunTotals, StepTrace
from minserve.virtual import CostModel
from widgets.panels import Case, Exercise, Misconception, Picture, Score, Wrong
from widgets.panels.exercises.asked import said
from widgets.panels.exercises.returns import TRUTH
from widgets.theme import format_count


@dataclass(frozen=True)
class Seat:
    """A request as the rule sees it."""

    tokens: int
    """It knows now, prompt and output: they fill its pages in this step."""
    left: int
    """Tokens it will still write, one a step, the first in this step."""


Rule = Callable[[Seat, Sequence[Seat], int, int], bool]

SPEC = SHAPES["llama-3.1-8b"].spec()
COST = CostModel(DEVICES["A100 80GB SXM"], efficiency=0.5, overhead_s=2e-4)
PAGE_TOKENS = 16
PROMPT_TOKENS = 32


class _Yours(ContinuousBatching):
    """The reader's rule in the place of the engine's own."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def admits(self, view: AdmissionView) -> bool:
        pool, page = view.memory.pool, view.memory.block_size
        running = tuple(_seat(request) for request in view.running)
        asked = _seat(view.waiting[0]), running, pool.num_blocks, page
        answer: bool = self.rule(*asked)
        if not answer and not running:
            raise Wrong(
                f"`{said(self.rule, asked)}` returned False although no request runs: then none "
                "ever will"
            )
        return answer


def _seat(request: Request) -> Seat:
    return Seat(request.num_tokens, request.max_len - request.num_tokens)


def serve(
    lengths: Sequence[int],
    num_pages: int,
    policy: BatchingPolicy,
    on_step: Callable[[StepTrace], None] = lambda step: None,
) -> RunTotals:
    """The real scheduler over real pages; time is modelled."""
    pool = num_pages * PAGE_TOKENS * SPEC.kv_bytes_per_token(2)
    config = EngineConfig().with_values(
        {
            "memory.block_size": PAGE_TOKENS,
            "memory.kv_bytes": pool,
            "scheduling.max_num_seqs": 8,
            "scheduling.max_model_len": 512,
        }
    )
    engine = build_virtual_engine(SPEC, config, COST, parts=EngineParts(policy=policy))
    prompts = [[1] * PROMPT_TOKENS] * len(lengths)
    drive(engine, at_once(prompts, [fixed_length(length) for length in lengths]), on_step=on_step)
    return engine.trace.totals


def _run_case(name: str, lengths: Sequence[int], num_pages: int) -> Case:
    def run(rule: Rule) -> None:
        try:
            totals = serve(lengths, num_pages, _Yours(rule))
        except AdmissionError as error:
            raise Wrong(f"there are not enough pages: {error}") from None
        if totals.preemptions:
            raise Wrong(
                f"the pool ran out of pages: {format_count(totals.preemptions, 'preemption')}, and "
                f"{format_count(totals.recomputed_tokens, 'token')} computed again"
            )

    return Case(name, run)


def _drawn(draw: random.Random) -> Case:
    lengths = [draw.choice((4, 12, 40, 120)) for _ in range(16)]
    pages = draw.randint(12, 48)
    return _run_case(f"{pages} pages, lengths {lengths}", lengths, pages)


def _asked(name: str, newcomer: Seat, running: Sequence[Seat], pages: int, answer: bool) -> Case:
    return Case.call(name, (newcomer, tuple(running), pages, 4), answer)


_EMPTY = "no request runs"
_BESIDE = "others still write, and pages are plenty"
_FULL = "no page is free"
_GROWTH, _NEWCOMER = "running requests will grow", "the newcomer will grow too"
_WHOLE = "pages are taken whole"

CASES = (
    _asked(_EMPTY, Seat(8, 8), (), 8, True),
    _asked(_BESIDE, Seat(4, 4), (Seat(4, 4), Seat(4, 4)), 16, True),
    _asked(_FULL, Seat(8, 2), (Seat(16, 2), Seat(12, 2)), 7, False),
    _asked(_GROWTH, Seat(4, 12), (Seat(8, 12), Seat(8, 12)), 8, False),
    _asked(_NEWCOMER, Seat(4, 16), (Seat(4, 16),), 8, False),
    _asked(_WHOLE, Seat(4, 1), (Seat(5, 1), Seat(5, 1)), 4, False),
    _run_case("equal lengths, a tight pool", [40] * 16, 18),
    _run_case("short and long ones, a tight pool", [8, 8, 120, 8, 60, 8, 8, 120] * 3, 30),
)


def look_ahead(newcomer: Seat, running: Sequence[Seat], pages: int, page_tokens: int) -> bool:
    """The best that can be promised: the pages of all live requests, at every step to come."""
    alive = [*running, newcomer]
    for step in {seat.left - 1 for seat in alive}:
        held = [seat.tokens + step for seat in alive if seat.left > step]
        if sum(-(-tokens // page_tokens) for tokens in held) > pages:
            return False
    return True


SCORED = (
    ([8, 8, 120, 8, 60, 8, 8, 120] * 4, 30),
    ([16, 200, 16, 16, 90, 16, 16, 16] * 3, 40),
    ([40] * 24, 24),
)


def _score(rule: Rule) -> Score:
    runs = [serve(lengths, pages, _Yours(rule)) for lengths, pages in SCORED]
    best = [serve(lengths, pages, _Yours(look_ahead)) for lengths, pages in SCORED]
    yours_s, best_s = (sum(total.duration_s for total in each) for each in (runs, best))
    steps, fewest = (sum(total.steps for total in each) for each in (runs, best))
    return Score(
        best_s / yours_s,
        f"{steps} steps and {yours_s:.2f} virtual seconds over three workloads without a "
        f"preemption; looking ahead takes {fewest} and {best_s:.2f}",
    )


def _pages(tokens: int, page_tokens: int) -> int:
    return -(-tokens // page_tokens)


def _static(newcomer: Seat, running: Sequence[Seat], pages: int, page_tokens: int) -> bool:
    return not running


def _always(newcomer: Seat, running: Sequence[Seat], pages: int, page_tokens: int) -> bool:
    return True


def _now(newcomer: Seat, running: Sequence[Seat], pages: int, page_tokens: int) -> bool:
    return sum(_pages(seat.tokens, page_tokens) for seat in [*running, newcomer]) <= pages


def _prompt_only(newcomer: Seat, running: Sequence[Seat], pages: int, page_tokens: int) -> bool:
    final = sum(_pages(seat.tokens + seat.left - 1, page_tokens) for seat in running)
    return final + _pages(newcomer.tokens, page_tokens) <= pages


def _without_newcomer(
    newcomer: Seat, running: Sequence[Seat], pages: int, page_tokens: int
) -> bool:
    return sum(_pages(seat.tokens + seat.left - 1, page_tokens) for seat in running) <= pages


def _in_tokens(newcomer: Seat, running: Sequence[Seat], pages: int, page_tokens: int) -> bool:
    tokens = sum(seat.tokens + seat.left - 1 for seat in [*running, newcomer])
    return tokens <= pages * page_tokens


def _reserve(newcomer: Seat, running: Sequence[Seat], pages: int, page_tokens: int) -> bool:
    seats = [*running, newcomer]
    return sum(_pages(seat.tokens + seat.left - 1, page_tokens) for seat in seats) <= pages


def _batch_sizes(rule: Rule) -> list[float]:
    lengths, pages = [8, 8, 120, 8, 60, 8, 8, 120] * 3, 30
    sizes: list[float] = []
    # Where the pages run out, what came before is drawn.
    with contextlib.suppress(Wrong, AdmissionError):
        serve(lengths, pages, _Yours(rule), lambda step: sizes.append(step.num_running))
    return sizes


EXERCISE = Exercise(
    key="45a.admission",
    title="Who may join?",
    task="Return True if the newcomer may join the running requests in this step: as often as you "
    "can, but so that no request ever runs out of pages. All lengths are known here.",
    function="admit",
    parameters=("newcomer", "running", "total_pages", "page_tokens"),
    returns=TRUTH,
    cases=CASES,
    random_case=_drawn,
    num_random=12,
    hints=(
        "A page is taken whole: n tokens need ceil(n / page_tokens) pages.",
        "A request holds tokens + k tokens k steps from now, and nothing once its last token is "
        "written: in the steps k = 0 … left - 1 it is there.",
        "The sum over all live requests is largest just before one of them ends. Check it there, "
        "newcomer included, and admit if it never exceeds total_pages.",
    ),
    misconceptions=(
        Misconception(
            "static",
            "You wait until all running requests have finished: that is static batching, and the "
            "slots of those that end early stay empty. Continuous batching asks again at every "
            "step.",
            (_static,),
        ),
        Misconception(
            "places",
            "You admit every request that finds a slot. A slot is only a row of the batch; "
            "without pages for its keys and values a request cannot compute.",
            (_always,),
        ),
        Misconception(
            "now",
            "You count the pages of this step only. Every request writes a token a step, so a "
            "batch that fits now outgrows the pool later: a request is preempted and computed "
            "again.",
            (_now,),
        ),
        Misconception(
            "newcomer",
            "You let the running requests grow, but not the newcomer: it takes the pages of its "
            "prompt now, and needs more soon after.",
            (_prompt_only,),
        ),
        Misconception(
            "left out",
            "You add up the pages of the running requests only. The newcomer needs pages too, now "
            "and for each token it writes.",
            (_without_newcomer,),
        ),
        Misconception(
            "tokens",
            "You compare tokens with the room in all pages together. A page belongs to one request "
            "alone, so the last page of each counts in full, however few tokens are in it.",
            (_in_tokens,),
        ),
    ),
    score=_score,
    naive={"reserve the largest size": _reserve},
    picture=Picture("A tight pool: requests in each step", "step", "requests", _batch_sizes),
)
