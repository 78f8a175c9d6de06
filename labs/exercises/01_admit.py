"""Chapter 01: accept a request, or refuse it now, so that most answers begin in time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from minserve.bench.workloads.conversations import independent
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.length_draws import fixed, lognormal
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traffic import Traffic, traffic
from minserve.build import build_virtual_engine
from minserve.config import EngineConfig
from minserve.hardware import DEVICES
from minserve.request import QueueFullError, Request, SamplingParams
from minserve.virtual import CostModel
from minserve.virtual.engine import VirtualEngine
from widgets.panels import Case, Exercise, Misconception, Picture, Score, Wrong
from widgets.panels.exercises.returns import TRUTH


@dataclass(frozen=True)
class Job:
    """A request that has just come."""

    prompt_tokens: int


@dataclass(frozen=True)
class Queue:
    """What the server has accepted and not yet answered with a first token."""

    requests: int
    prompt_tokens: int
    """Of these requests, those that are not computed yet."""
    tokens_per_s: float
    """Prompt tokens that the server computes in a second."""
    limit_s: float
    """An answer that begins later than this is worth nothing."""


Rule = Callable[[Job, Queue], bool]

SPEC = SHAPES["llama-3.1-8b"].spec()
COST = CostModel(DEVICES["H100 SXM"], efficiency=0.5, overhead_s=2e-4)
SPEED, LIMIT_S = 32_000.0, 1.0
"""The first is what this model computes of such prompts, rounded down."""
COUNT, RATE_PER_S = 240, 30.0
"""The rate is 1.2 times what the server can answer."""


class _Gate:
    """Asks the reader's rule before a request enters the engine."""

    def __init__(self, engine: VirtualEngine, rule: Rule) -> None:
        self._engine, self._rule = engine, rule

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add(
        self, name: str, prompt: Sequence[int], params: SamplingParams, **given: Any
    ) -> list[Request]:
        live = [one for one in self._engine.live_requests() if not one.num_output_tokens]
        missing = sum(one.num_prompt_tokens - one.num_computed_tokens for one in live)
        if not self._rule(Job(len(prompt)), Queue(len(live), missing, SPEED, LIMIT_S)):
            raise QueueFullError(name)
        return self._engine.add(name, prompt, params, **given)


@cache
def workload(seed: int) -> Traffic:
    """Prompts of very different lengths, and short answers."""
    jobs = independent(lognormal(1500, 1.0, at_most=6000), fixed(4))
    return traffic(jobs, COUNT, RATE_PER_S, seed=seed)


def first_tokens_s(rule: Rule, seed: int) -> list[float]:
    """Time to first token of each accepted request, in order of arrival, with the real scheduler
    on modelled time."""
    values = {"scheduling.max_num_seqs": 256, "scheduling.max_model_len": 8192}
    engine = build_virtual_engine(SPEC, EngineConfig().with_values(values), COST)
    drive(_Gate(engine, rule), workload(seed))  # type: ignore[arg-type]
    done = sorted(engine.trace.requests, key=lambda one: int(one.request_id))
    return [one.metrics.ttft_s or 0.0 for one in done]


def in_time(rule: Rule, seed: int) -> int:
    """Requests whose answer began within the limit."""
    return sum(each <= LIMIT_S for each in first_tokens_s(rule, seed))


def reference(job: Job, queue: Queue) -> bool:
    """All tokens before the first one of the answer, this prompt's own among them."""
    wait_s = (queue.prompt_tokens + job.prompt_tokens) / queue.tokens_per_s
    return wait_s <= queue.limit_s


@cache
def best(seed: int) -> int:
    """What the worked solution reaches."""
    return in_time(reference, seed)


@cache
def all_accepted(seed: int) -> int:
    """Without a rule."""
    return in_time(lambda job, queue: True, seed)


def _run_case(name: str, seed: int, share: float) -> Case:
    def run(rule: Rule) -> None:
        took = first_tokens_s(rule, seed)
        good, least = sum(each <= LIMIT_S for each in took), round(share * best(seed))
        if good < least:
            late = len(took) - good
            raise Wrong(
                f"{good} of {COUNT} answers began within {LIMIT_S:g} s, expected at least {least}; "
                f"{late} began too late, {COUNT - len(took)} were refused",
                got=took,
            )

    return Case(name, run)


def _asked(name: str, job: Job, queue: Queue) -> Case:
    return Case.call(name, (job, queue), reference(job, queue))


def _drawn(draw: random.Random) -> Case:
    """Clearly in time, or clearly late, whatever the number of requests."""
    speed, limit = draw.choice((1e3, 8e3, 32e3)), draw.choice((0.2, 0.5, 2.0, 5.0))
    tokens = round(draw.choice((0.6, 0.8, 1.25, 1.6)) * speed * limit)
    own = draw.randint(1, max(1, tokens // 2))
    waiting = draw.randint(1, 20)
    job, queue = Job(own), Queue(waiting, tokens - own, speed, limit)
    return _asked(f"{job}, {queue}", job, queue)


CASES = (
    _asked("an empty server", Job(900), Queue(0, 0, 1000.0, 1.0)),
    _asked("an empty server, and a prompt that takes too long", Job(1500), Queue(0, 0, 1e3, 1.0)),
    _asked("twenty short prompts wait", Job(20), Queue(20, 400, 1000.0, 1.0)),
    _asked("two long prompts wait", Job(20), Queue(2, 1400, 1000.0, 1.0)),
    _asked("the queue is in time, this prompt is not", Job(600), Queue(3, 700, 1000.0, 1.0)),
    _asked("more patient users", Job(600), Queue(3, 700, 1000.0, 5.0)),
    _asked("less patient users", Job(100), Queue(3, 300, 1000.0, 0.2)),
    _run_case("240 requests at 1.2 times the capacity", 1, 0.93),
    _run_case("240 others", 2, 0.93),
)

SEEDS = (3, 4, 5)


def _score(rule: Rule) -> Score:
    yours, worked, plain = (
        sum(count) for count in zip(*((in_time(rule, seed), best(seed), all_accepted(seed))
                                      for seed in SEEDS), strict=True)
    )  # fmt: skip
    return Score(
        # 0 is accepting all: the share of its loss that is won back.
        (yours - plain) / (worked - plain),
        f"{yours} of {len(SEEDS) * COUNT} answers in time over three workloads; the worked "
        f"solution reaches {worked}, accepting all {plain}",
    )


def _at_most(most: int) -> Rule:
    return lambda job, queue: queue.requests < most


def _first_in_time(rule: Rule) -> list[float]:
    return first_tokens_s(rule, 1)


EXERCISE = Exercise(
    key="01.admit",
    title="Accept, or refuse now?",
    task="Return True to accept the job, False to refuse it at once. An answer that begins after "
    "the limit is worth as little as a refusal, and takes time from the others.",
    function="admit",
    parameters=("job", "queue"),
    returns=TRUTH,
    cases=CASES,
    random_case=_drawn,
    num_random=16,
    hints=(
        "Requests are served in order of arrival. What must the server compute before this job's "
        "first token?",
        "The number of waiting requests says little: twenty short prompts may take less time than "
        "one long one. Count tokens.",
        "The wait is the tokens ahead and the job's own prompt, divided by queue.tokens_per_s. "
        "Accept if it is at most queue.limit_s.",
    ),
    misconceptions=(
        Misconception(
            "all",
            "You accept every request. Above capacity the queue grows until every answer begins "
            "too late, and the server works for users who have given up.",
            (lambda job, queue: True,),
        ),
        Misconception(
            "length",
            "You limit the number of waiting requests. That is what `max_queued_requests` does, "
            "but a short queue of long prompts takes longer than a long queue of short ones.",
            tuple(map(_at_most, (4, 5, 8, 10, 12, 16, 20, 32))),
        ),
        Misconception(
            "ahead",
            "You count what waits before the job, but not the job's own prompt: it has to be "
            "computed too before the first token.",
            (lambda job, queue: queue.prompt_tokens / queue.tokens_per_s <= queue.limit_s,),
        ),
        Misconception(
            "alone",
            "You ask whether the job would be in time on an empty server. The requests that came "
            "before it are computed first.",
            (lambda job, queue: job.prompt_tokens / queue.tokens_per_s <= queue.limit_s,),
        ),
        Misconception(
            "one second",
            "You compare tokens with the tokens of one second, whatever the limit is.",
            (lambda job, queue: queue.prompt_tokens + job.prompt_tokens <= queue.tokens_per_s,),
        ),
        Misconception(
            "reversed",
            "You accept the requests that will be late and refuse those that would be in time.",
            (lambda job, queue: not reference(job, queue),),
        ),
    ),
    score=_score,
    naive={
        "never more than 25 requests": lambda job, queue: (
            queue.requests < 25 and reference(job, queue)
        )
    },
    picture=Picture(
        "When the answers of 240 requests begin",
        "accepted request, in order of arrival",
        "time to first token (s)",
        _first_in_time,
    ),
)
