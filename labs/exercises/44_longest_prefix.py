"""Chapter 44: who goes next, so that cached prefixes are used before they are evicted."""

from __future__ import annotations

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
from minserve.scheduling import QueueEntry, QueuePolicy
from minserve.trace import StepTrace
from minserve.virtual import CostModel
from widgets.panels import Case, Exercise, Misconception, Picture, Wrong
from widgets.panels.exercises.asked import said
from widgets.panels.exercises.returns import NUMBER


@dataclass(frozen=True)
class Seat:
    """A waiting request as the rule sees it."""

    tokens: int
    """Of its prompt."""
    found: int
    """Of them, tokens that the cache holds at this moment."""
    overtaken: int
    """Later arrivals that went before it so far."""


Rank = Callable[[Seat, int], float]

SPEC = SHAPES["llama-3.1-8b"].spec()
COST = CostModel(DEVICES["A100 80GB SXM"], efficiency=0.5, overhead_s=2e-4)
PAGE_TOKENS = 16
LIMIT = 6


class _Yours(QueuePolicy):
    """The reader's rule in the place of the engine's own, and a count of overtaken requests."""

    needs_prefixes = True

    def __init__(self, rule: Rank, limit: int) -> None:
        self.rule, self.limit = rule, limit
        self.started: list[int] = []

    def overtaken(self, entry: QueueEntry) -> int:
        """How many later arrivals have a place, or had one."""
        return sum(1 for number in self.started if number > entry.arrival_number)

    def rank(self, entry: QueueEntry) -> float:
        if entry.arrival_number in self.started:
            return float("-inf")  # It runs: there is nothing left to decide.
        seat = Seat(entry.request.num_prompt_tokens, entry.found_tokens, self.overtaken(entry))
        return self.rule(seat, self.limit)

    def watch(self, step: StepTrace) -> None:
        """Note who started in this step."""
        for part in step.requests:
            if int(part.request_id) not in self.started:
                self.started.append(int(part.request_id))


@dataclass(frozen=True)
class Queue:
    """A workload: (length of the shared prefix, length of the own part) by group, and the order in
    which the groups arrive."""

    groups: tuple[tuple[int, int], ...]
    arrivals: tuple[int, ...]
    num_pages: int


def serve(queue: Queue, rule: Rank, limit: int = LIMIT) -> tuple[int, list[int], list[int]]:
    """Tokens found in the cache, how often each request was overtaken, and the order they went
    in."""
    config = EngineConfig().with_values(
        {
            "memory.block_size": PAGE_TOKENS,
            "memory.prefix_cache": "radix",
            "memory.kv_bytes": queue.num_pages * PAGE_TOKENS * SPEC.kv_bytes_per_token(2),
            "scheduling.max_num_seqs": 1,
            "scheduling.max_model_len": 1024,
            "scheduling.starvation_limit_s": 1e9,  # the rule's own limit is at work here
            "trace.per_request": True,
        }
    )
    order = _Yours(rule, limit)
    engine = build_virtual_engine(SPEC, config, COST, parts=EngineParts(order=order))
    prompts = []
    for number, group in enumerate(queue.arrivals):
        shared, own = queue.groups[group]
        prompts.append([10_000 + group] * shared + [20_000 + number] * own)
    drive(engine, at_once(prompts, [fixed_length(2)] * len(prompts)), on_step=order.watch)
    place = {number: at for at, number in enumerate(order.started)}
    overtaken = [
        sum(1 for later in place if later > number and place[later] < place[number])
        for number in range(len(queue.arrivals))
    ]
    return engine.trace.totals.hit_tokens, overtaken, order.started


def longest_prefix(seat: Seat, limit: int) -> float:
    """The engine's own order, with a bound counted in overtakers instead of seconds."""
    return float("-inf") if seat.overtaken >= limit else -seat.found


def _first(rule: Rank, seats: Sequence[Seat], limit: int) -> int:
    ranks = [rule(seat, limit) for seat in seats]
    return ranks.index(min(ranks))


def _asked(name: str, *seats: Seat, limit: int = LIMIT) -> Case:
    """Which of the seats, in order of arrival, goes first?"""
    expected = _first(longest_prefix, seats, limit)

    def run(rule: Rank) -> None:
        got = _first(rule, seats, limit)
        if got != expected:
            one, other = ((seats[place], limit) for place in (got, expected))
            raise Wrong(
                f"of {len(seats)} requests, `{said(rule, one)}` goes first, expected "
                f"`{said(rule, other)}`, which is number {expected + 1} to arrive",
                # Ranks are compared with each other only: rules that order alike are alike.
                got=got,
            )

    return Case(name, run)


def _served(name: str, queue: Queue, limit: int = LIMIT) -> Case:
    def run(rule: Rank) -> None:
        found, overtaken, order = serve(queue, rule, limit)
        best, *_ = serve(queue, longest_prefix, limit)
        if max(overtaken) > limit:
            raise Wrong(
                f"a request was overtaken {max(overtaken)} times, and the limit is {limit}",
                got=order,
            )
        if found < best:
            raise Wrong(
                f"{found:,} prompt tokens were found in the cache, expected {best:,}", got=order
            )

    return Case(name, run)


IN_TURN = Queue(((480, 32),) * 3, (0, 1, 2) * 4, 44)
STRANGER = Queue(((480, 32), (0, 64)), (0, 1, *(0,) * 14), 44)

CASES = (
    _asked("a cached prefix against an earlier stranger", Seat(400, 0, 0), Seat(400, 320, 0)),
    _asked("nothing is cached: arrival decides", Seat(400, 0, 0), Seat(90, 0, 0), Seat(700, 0, 0)),
    _asked("a short prompt all cached, against a long prefix", Seat(64, 63, 0), Seat(900, 640, 0)),
    _asked("a short stranger against a long cached prompt", Seat(48, 0, 0), Seat(800, 640, 0)),
    _asked("overtaken too often", Seat(400, 0, LIMIT), Seat(400, 320, 0)),
    _asked(
        "two overtaken too often: the earlier one",
        Seat(400, 16, LIMIT),
        Seat(400, 320, LIMIT),
        Seat(500, 480, 0),
    ),
    _asked("another limit", Seat(400, 0, 2), Seat(400, 320, 0), limit=2),
    _served("three groups in turn, room for one", IN_TURN),
    _served("a stranger among one group's questions", STRANGER),
    _served("the same, overtaken three times at most", STRANGER, 3),
)


def _drawn(draw: random.Random) -> Case:
    seats = []
    for _ in range(draw.randint(2, 5)):
        tokens = draw.randint(32, 900)
        found = draw.choice((0, draw.randrange(tokens)))
        seats.append(Seat(tokens, found, draw.choice((0, 0, 1, LIMIT - 1, LIMIT))))
    return _asked("a drawn queue", *seats, limit=draw.choice((LIMIT, LIMIT, LIMIT + 3)))


def _late(rank: Callable[[Seat], float]) -> Rank:
    return lambda seat, limit: float("-inf") if seat.overtaken >= limit else rank(seat)


EXERCISE = Exercise(
    key="44.longest_prefix",
    title="Which request goes next?",
    task="Return a number for a waiting request; the smallest goes first, and of equal ones the "
    "earlier arrival. Find as many tokens in the cache as you can; no request may be overtaken "
    "more than `limit` times.",
    function="rank",
    parameters=("seat", "limit"),
    returns=NUMBER,
    cases=CASES,
    random_case=_drawn,
    num_random=12,
    hints=(
        "What is lost if a request with a long cached prefix waits? Its pages may be gone then.",
        "The smallest number goes first: more tokens found must give a smaller number.",
        "A request overtaken `limit` times must go before all others, whatever is cached: give it "
        "float('-inf'). All others get -seat.found.",
    ),
    misconceptions=(
        Misconception(
            "arrival",
            "You put the earlier arrival first, whatever is cached. Questions about one file then "
            "come between those about another, and each evicts what the next one needs.",
            (lambda seat, limit: 0.0,),
        ),
        Misconception(
            "backwards",
            "You put the shortest cached prefix first. The smallest number goes first, so more "
            "tokens found must give a smaller number.",
            (_late(lambda seat: seat.found), lambda seat, limit: seat.found),
        ),
        Misconception(
            "starves",
            "In your order, a request that was overtaken `limit` times does not go first. As long "
            "as questions about a cached file keep coming, one about another file waits forever.",
            (
                lambda seat, limit: -seat.found,
                lambda seat, limit: float("inf") if seat.overtaken >= limit else -seat.found,
            ),
        ),
        Misconception(
            "shortest work",
            "You put the least left to compute first. A short stranger then goes before a long "
            "cached prompt, takes pages, and the prefix may be evicted while its readers wait.",
            (
                _late(lambda seat: seat.tokens - seat.found),
                lambda seat, limit: seat.tokens - seat.found,
            ),
        ),
        Misconception(
            "share",
            "You rank by the share of the prompt that is cached. What is saved is tokens: most of "
            "a long prompt is worth more than all of a short one.",
            (
                _late(lambda seat: -seat.found / seat.tokens),
                lambda seat, limit: -seat.found / seat.tokens,
            ),
        ),
        Misconception(
            "latest first",
            "Of the requests overtaken too often you do not put the earlier one first. Give them "
            "all the same number: arrival decides between equals.",
            (
                lambda seat, limit: (
                    -(10**6) - seat.found if seat.overtaken >= limit else -seat.found
                ),
            ),
        ),
        Misconception(
            "one too many",
            "You let a request be overtaken once more than allowed: with seat.overtaken equal to "
            "limit, the next one would be too many.",
            (lambda seat, limit: float("-inf") if seat.overtaken > limit else -seat.found,),
        ),
        Misconception(
            "one too few",
            "You put a request first too soon: it may be overtaken once more. `limit` times are "
            "allowed, and each one lets a cached prefix be used before it is evicted.",
            (lambda seat, limit: float("-inf") if seat.overtaken >= limit - 1 else -seat.found,),
        ),
    ),
    picture=Picture(
        "Three groups of questions: which request goes when",
        "place in the order",
        "number of arrival",
        lambda rule: [1 + number for number in serve(IN_TURN, rule)[2]],
    ),
)
