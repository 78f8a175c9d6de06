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
from widgets.panels import Case, Exercise, Failure, Misconception, Score, Wrong


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
    """The learner's rule in the place of the engine's own, and a count of who was overtaken."""

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
        return _number(self.rule(seat, self.limit))

    def watch(self, step: StepTrace) -> None:
        """Note who started in this step."""
        for part in step.requests:
            if int(part.request_id) not in self.started:
                self.started.append(int(part.request_id))


def _number(answer: object) -> float:
    if isinstance(answer, bool) or not isinstance(answer, (int, float)):
        raise Wrong(f"it returned {answer!r}, expected a number: the smallest goes first")
    return float(answer)


@dataclass(frozen=True)
class Queue:
    """A workload: (length of the shared prefix, length of the own part) by group, and the order in
    which the groups arrive."""

    groups: tuple[tuple[int, int], ...]
    arrivals: tuple[int, ...]
    num_pages: int


def serve(queue: Queue, rule: Rank, limit: int = LIMIT) -> tuple[int, list[int]]:
    """Tokens found in the cache, and how often each request was overtaken."""
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
    return engine.trace.totals.hit_tokens, overtaken


def longest_prefix(seat: Seat, limit: int) -> float:
    """The engine's own order, with a bound counted in overtakers instead of seconds."""
    return float("-inf") if seat.overtaken >= limit else -seat.found


def _first(rule: Rank, seats: Sequence[Seat], limit: int) -> int:
    ranks = [_number(rule(seat, limit)) for seat in seats]
    return ranks.index(min(ranks))


def _asked(name: str, *seats: Seat, limit: int = LIMIT) -> Case:
    """Who of the seats, in order of arrival, goes first?"""
    expected = _first(longest_prefix, seats, limit)

    def run(rule: Rank) -> None:
        got = _first(rule, seats, limit)
        if got != expected:
            raise Wrong(
                f"of {', '.join(map(repr, seats))} with limit {limit} it puts number {got} first, "
                f"expected number {expected}",
                got=got,
                expected=expected,
            )

    return Case(name, run, seats)


def _served(name: str, queue: Queue) -> Case:
    def run(rule: Rank) -> None:
        found, overtaken = serve(queue, rule)
        best, _ = serve(queue, longest_prefix)
        if max(overtaken) > LIMIT:
            raise Wrong(f"a request was overtaken {max(overtaken)} times, and the limit is {LIMIT}")
        if found < best:
            raise Wrong(
                f"{found} prompt tokens were found in the cache, expected {best}",
                got=found,
                expected=best,
            )

    return Case(name, run)


_FOUND, _LATE = "a cached prefix against an earlier stranger", "overtaken too often"
_SHORT = "a short prompt all cached, against a long prefix"
_WORK = "a short stranger against a long cached prompt"
_TWO_LATE = "two overtaken too often: the earlier one"
_TURNS, _STRANGER = "three groups in turn, room for one", "a stranger among one group's questions"

IN_TURN = Queue(((480, 32),) * 3, (0, 1, 2) * 4, 44)
STRANGER = Queue(((480, 32), (0, 64)), (0, 1, *(0,) * 14), 44)
UNEVEN = Queue(((640, 16), (160, 32), (320, 128)), (0, 1, 2, 1, 0, 2, 2, 0, 1, 0, 1, 2), 52)

CASES = (
    _asked(_FOUND, Seat(400, 0, 0), Seat(400, 320, 0)),
    _asked("nothing is cached: who came first", Seat(400, 0, 0), Seat(90, 0, 0), Seat(700, 0, 0)),
    _asked(_SHORT, Seat(64, 63, 0), Seat(900, 640, 0)),
    _asked(_WORK, Seat(48, 0, 0), Seat(800, 640, 0)),
    _asked(_LATE, Seat(400, 0, LIMIT), Seat(400, 320, 0)),
    _asked(_TWO_LATE, Seat(400, 16, LIMIT), Seat(400, 320, LIMIT), Seat(500, 480, 0)),
    _served(_TURNS, IN_TURN),
    _served(_STRANGER, STRANGER),
)


def _drawn(draw: random.Random) -> Case:
    seats = []
    for _ in range(draw.randint(2, 5)):
        tokens = draw.randint(32, 900)
        found = draw.choice((0, draw.randrange(tokens)))
        seats.append(Seat(tokens, found, draw.choice((0, 0, 1, LIMIT - 1, LIMIT))))
    return _asked("a drawn queue", *seats)


def _fails(*names: str) -> Callable[[Sequence[Failure]], bool]:
    return lambda failures: set(names) <= {failure.case.name for failure in failures}


def _passes(name: str) -> Callable[[Sequence[Failure]], bool]:
    return lambda failures: all(failure.case.name != name for failure in failures)


def _both(*tests: Callable[[Sequence[Failure]], bool]) -> Callable[[Sequence[Failure]], bool]:
    return lambda failures: all(test(failures) for test in tests)


def _always_the_first(failures: Sequence[Failure]) -> bool:
    return all(failure.got == 0 for failure in failures if failure.case.args)


SCORED = (IN_TURN, STRANGER, UNEVEN)


def _score(rule: Rank) -> Score:
    yours = sum(serve(queue, rule)[0] for queue in SCORED)
    best = sum(serve(queue, longest_prefix)[0] for queue in SCORED)
    arrival = sum(serve(queue, lambda seat, limit: 0.0)[0] for queue in SCORED)
    return Score(
        yours / best,
        f"{yours:,} prompt tokens found over three workloads; the worked solution finds {best:,}, "
        f"first come first served {arrival:,}",
    )


def _late(rank: Callable[[Seat], float]) -> Rank:
    return lambda seat, limit: float("-inf") if seat.overtaken >= limit else rank(seat)


EXERCISE = Exercise(
    key="44.longest_prefix",
    title="Who goes next?",
    task="Return a number for a waiting request; the smallest goes first, and of equal ones the "
    "earlier arrival. Find as many tokens in the cache as you can; nobody may be overtaken more "
    "than `limit` times.",
    function="rank",
    cases=CASES,
    random_case=_drawn,
    num_random=12,
    hints=(
        "What is lost if a request with a long cached prefix waits? Its pages may be gone then.",
        "The smallest number goes first: more tokens found must give a smaller number.",
        "Somebody overtaken `limit` times must go before everybody else, whatever is cached: give "
        "him float('-inf'). All others get -seat.found.",
    ),
    misconceptions=(
        Misconception(
            "arrival",
            "You put the earlier arrival first, whatever is cached. Questions about one file then "
            "come between those about another, and each evicts what the next one needs.",
            _both(_fails(_FOUND), _always_the_first),
        ),
        Misconception(
            "backwards",
            "You put the shortest cached prefix first. The smallest number goes first, so more "
            "tokens found must give a smaller number.",
            _fails(_FOUND, _SHORT, _TURNS, "a drawn queue"),
        ),
        Misconception(
            "starves",
            "You never look at seat.overtaken. As long as questions about a cached file keep "
            "coming, a stranger waits for ever.",
            _both(_fails(_LATE), _passes(_SHORT), _passes(_WORK)),
        ),
        Misconception(
            "shortest work",
            "You put the least left to compute first. A short stranger then goes before a long "
            "cached prompt, takes pages, and the prefix may be evicted while its readers wait.",
            _fails(_WORK),
        ),
        Misconception(
            "share",
            "You rank by the share of the prompt that is cached. What is saved is tokens: most of "
            "a long prompt is worth more than all of a short one.",
            _fails(_SHORT),
        ),
        Misconception(
            "latest first",
            "Of those overtaken too often you do not put the earlier one first. Give them all the "
            "same number: arrival decides between equals.",
            _fails(_TWO_LATE),
        ),
    ),
    score=_score,
    wrong={
        "arrival": lambda seat, limit: 0.0,
        "backwards": _late(lambda seat: seat.found),
        "starves": lambda seat, limit: -seat.found,
        "shortest work": _late(lambda seat: seat.tokens - seat.found),
        "share": _late(lambda seat: -seat.found / seat.tokens),
        "latest first": lambda seat, limit: (
            -(10**6) - seat.found if seat.overtaken >= limit else -seat.found
        ),
    },
)
