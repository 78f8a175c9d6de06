"""Chapter 43b: how much of a returning session's history to load, and how much to compute."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from minserve.bench.runs.sessions import IDLE, resume_s, returning
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.shapes import SHAPES
from minserve.build import build_virtual_engine
from minserve.hardware import DEVICES, WorkCounter
from minserve.memory import TokenBlocks
from minserve.memory.prefix.cache import Hit
from minserve.virtual import CostModel
from minserve.virtual.transfers import HostLink
from widgets.panels import Case, Exercise, Misconception, Picture, Wrong
from widgets.panels.exercises.asked import said
from widgets.panels.exercises.returns import WHOLE_NUMBER

SPEC = SHAPES["llama-3.1-8b"].spec()
PAGE, POOL, QUESTION = 16, 2112, 8
TOLERANCE = 1.001
"""Times the least seconds, for a case to pass: then there is nothing left to score."""
PAGE_BYTES = PAGE * SPEC.kv_bytes_per_token(2)
COUNTER = WorkCounter(SPEC, 2)


def cost(disk_bytes_per_s: float) -> CostModel:
    """An A100 with a bus and a disk."""
    links = HostLink(32e9, disk_bytes_per_s=disk_bytes_per_s)
    return CostModel(DEVICES["A100 80GB PCIe"], efficiency=0.5, overhead_s=2e-4, link=links)


@dataclass(frozen=True)
class Offer:
    """A session comes back, and its history lies in a lower tier."""

    pages: int
    """Of its history, all of them there."""
    page_tokens: int
    question: int
    """New tokens, to be computed in any case."""
    load_s: float
    """Seconds to load a page."""
    compute_s: Callable[[int], float] = field(repr=False)
    """Modelled seconds of the step that computes the last n tokens of history and question."""


Rule = Callable[[Offer], int]


def offer_of(pages: int, load_s: float) -> Offer:
    """What the rule sees."""
    context = pages * PAGE + QUESTION

    def compute_s(tokens: int) -> float:
        work = COUNTER.count([tokens], [context], 1)
        return cost(1e9).step_s(work, tokens, 1)

    return Offer(pages, PAGE, QUESTION, load_s, compute_s)


def seconds(offer: Offer, pages: int) -> float:
    """What loading so many pages comes to."""
    left = offer.question + (offer.pages - pages) * offer.page_tokens
    return pages * offer.load_s + offer.compute_s(left)


def best(offer: Offer) -> int:
    """The number of pages that takes least time."""
    return min(range(offer.pages + 1), key=lambda pages: seconds(offer, pages))


def _asked(rule: Rule, offer: Offer) -> int:
    answer = rule(offer)
    if not 0 <= answer <= offer.pages:
        raise Wrong(
            f"`{said(rule, (offer,))}` returned {answer}, expected 0 to {offer.pages} pages"
        )
    return answer


def serve(rule: Rule, history: int, disk_bytes_per_s: float) -> float:
    """Virtual seconds to the first token of a session that returns from disk, in the real engine's
    memory and scheduler."""
    model = cost(disk_bytes_per_s)
    pages = POOL // PAGE
    config = IDLE.with_values(
        {
            "memory.kv_bytes": pages * PAGE_BYTES,
            "memory.host_bytes": pages * PAGE_BYTES,
            "memory.disk_bytes": 1 << 30,
            "scheduling.max_model_len": POOL,
            "scheduling.max_num_batched_tokens": POOL,
        }
    )
    engine = build_virtual_engine(SPEC, config, model)
    prefix = engine.memory.prefix
    assert prefix is not None
    whole = prefix.lookup
    # A page that comes from disk pushes two others there: out of the host to make room for it, and
    # out of the device through the host.
    load_s = 2 * PAGE_BYTES / 32e9 + 3 * PAGE_BYTES / disk_bytes_per_s

    def lookup(token_blocks: TokenBlocks, max_tokens: int) -> Hit:
        hit = whole(token_blocks, max_tokens)
        if not hit.keys:
            return hit
        kept = _asked(rule, offer_of(len(hit.keys), load_s))
        return Hit(hit.blocks, keys=hit.keys[:kept], tiers=hit.tiers[:kept])

    prefix.lookup = lookup  # type: ignore[method-assign]
    drive(engine, returning(history, POOL, QUESTION))
    engine.close()
    return resume_s(engine.trace) or 0.0


def _case(name: str, pages: int, load_s: float) -> Case:
    offer = offer_of(pages, load_s)

    def run(rule: Rule) -> None:
        answer, expected = _asked(rule, offer), best(offer)
        yours, least = seconds(offer, answer), seconds(offer, expected)
        if yours > TOLERANCE * least:
            raise Wrong(
                f"`{said(rule, (offer,))}` returned {answer}, which takes {yours * 1e3:.1f} ms; "
                f"{expected} would take {least * 1e3:.1f} ms"
            )

    return Case(name, run)


def _drawn(draw: random.Random) -> Case:
    # Most of these have an answer between none and all.
    pages = draw.choice((3, 20, 40, 60, 90, 120))
    load_s = draw.choice((6e-5, 2e-4, 4e-4, 7e-4, 1e-3, 4e-3))
    return _case(f"{pages} pages, {load_s * 1e3:g} ms each", pages, load_s)


def _engine_case(name: str, history: int, disk_bytes_per_s: float) -> Case:
    def run(rule: Rule) -> None:
        yours_s, least_s = (serve(each, history, disk_bytes_per_s) for each in (rule, best))
        if yours_s > TOLERANCE * least_s:
            raise Wrong(
                f"the first token came after {yours_s * 1e3:.1f} ms; {least_s * 1e3:.1f} ms is "
                "possible"
            )

    return Case(name, run)


CASES = (
    _case("a long history, a fast disk", 128, 9e-4),
    _case("a slow disk", 64, 2e-2),
    _case("a short history", 4, 9e-4),
    _case("a long history in host memory", 128, 6.5e-5),
    _engine_case("a session through the engine", 512, 5e9),
)


def _all(offer: Offer) -> int:
    return offer.pages


def _none(offer: Offer) -> int:
    return 0


def _either(offer: Offer) -> int:
    return offer.pages if seconds(offer, offer.pages) <= seconds(offer, 0) else 0


def _sweep(rule: Rule) -> list[float]:
    return [float(rule(offer_of(128, load_s))) for load_s in SPEEDS]


SPEEDS = (1e-4, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1.2e-3, 1.4e-3, 1.6e-3, 2e-3, 3e-3, 4e-3)

EXERCISE = Exercise(
    key="43b.pages_to_load",
    title="Load how much?",
    task="Return how many of the history's first pages to load (0 to offer.pages), so that the "
    "first token comes soonest. What is not loaded is computed, with the question, in one step. "
    "A case passes within 0.1 % of the shortest time.",
    function="pages_to_load",
    parameters=("offer",),
    returns=WHOLE_NUMBER,
    cases=CASES,
    random_case=_drawn,
    num_random=12,
    hints=(
        "Loading k pages takes k * load_s; then a step computes question + (pages - k) * "
        "page_tokens tokens.",
        "Ask offer.compute_s what a step costs for 8, 100, 1,000 tokens: it hardly grows at first.",
        "There are only pages + 1 answers: min(range(offer.pages + 1), key=seconds).",
    ),
    misconceptions=(
        Misconception(
            "all",
            "You always load everything. The last pages are computed at almost no extra time, "
            "while the question's step reads the weights; and from a slow disk, loading takes "
            "longer than computing all of them.",
            (_all,),
        ),
        Misconception(
            "none",
            "You never load: then the history was kept for nothing. For a long history, computing "
            "takes longer than loading.",
            (_none,),
        ),
        Misconception(
            "either",
            "You choose between all and nothing. The question's step reads all weights in any "
            "case, and the last pages of the history are computed while they are being read, at "
            "almost no extra time.",
            (_either,),
        ),
    ),
    picture=Picture(
        "Pages loaded of a history of 128",
        "seconds to load a page",
        "pages",
        _sweep,
        SPEEDS,
    ),
)
