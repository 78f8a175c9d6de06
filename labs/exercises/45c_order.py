"""Chapter 45c: who goes first, when predicted lengths are mostly right and sometimes very wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import fmean

from minserve.bench.workloads.conversations import independent
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.length_draws import fixed, lognormal
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traffic import Traffic, traffic
from minserve.build import build_virtual_engine
from minserve.config import EngineConfig
from minserve.engine.parts import EngineParts
from minserve.hardware import DEVICES
from minserve.request import Request
from minserve.scheduling import QueueEntry, QueuePolicy
from minserve.virtual import CostModel
from widgets.panels import Case, Exercise, Misconception, Picture, Score, Wrong
from widgets.panels.exercises.asked import said
from widgets.panels.exercises.returns import NUMBER


@dataclass(frozen=True)
class Job:
    """A request as the rule sees it."""

    predicted: float
    """Output tokens that were predicted when it came."""
    written: int
    """Output tokens it has by now."""


Rule = Callable[[Job], float]

SPEC = SHAPES["llama-3.1-8b"].spec()
COST = CostModel(DEVICES["H100 SXM"], efficiency=0.5, overhead_s=2e-4)


class MostlyRight:
    """Off by a third or so, and takes every other essay for a one-liner."""

    def predict(self, request: Request) -> float:
        truth = request.max_len - request.num_prompt_tokens
        draw = random.Random(request.request_id)
        if truth > 200 and draw.random() < 0.5:
            return 10.0
        return truth * math.exp(draw.gauss(0.0, 0.3))


class _Yours(QueuePolicy):
    """The reader's rule in the place of the engine's own order."""

    preemptive = True
    needs_lengths = True

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def rank(self, entry: QueueEntry) -> float:
        return self.rule(Job(entry.predicted_tokens or 0.0, entry.request.num_output_tokens))


@cache
def workload(seed: int) -> Traffic:
    """Heavy-tailed answers, more of them at times than eight places can take."""
    jobs = independent(fixed(64), lognormal(100, 2.0, at_most=1000))
    return traffic(jobs, 80, 30.0, seed=seed)


def end_to_end_s(order: QueuePolicy | None, seed: int) -> list[float]:
    """End-to-end seconds of each request, shortest answer first, in the real scheduler on modelled
    time. `order` None: first come, first served."""
    config = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": 8,
            "scheduling.max_model_len": 4096,
            "scheduling.starvation_limit_s": 60.0,
        }
    )
    predictor = None if order is None else MostlyRight()
    parts = EngineParts(order=order, predictor=predictor)
    engine = build_virtual_engine(SPEC, config, COST, parts=parts)
    drive(engine, workload(seed), fast=True)
    done = [one.metrics for one in engine.trace.requests]
    return [one.e2e_s or 0.0 for one in sorted(done, key=lambda each: each.num_output_tokens)]


def mean_s(order: QueuePolicy | None, seed: int) -> float:
    """The mean of them."""
    return fmean(end_to_end_s(order, seed))


@cache
def plain_s(seed: int) -> float:
    """First come, first served."""
    return mean_s(None, seed)


def reference(job: Job) -> float:
    """What is probably left."""
    return job.predicted - job.written if job.written < job.predicted else float(job.written)


@cache
def best_s(seed: int) -> float:
    """The worked solution's idea."""
    return mean_s(_Yours(reference), seed)


def _before(name: str, first: Job, second: Job) -> Case:
    def run(rule: Rule) -> None:
        one, other = rule(first), rule(second)
        if not one < other:
            raise Wrong(
                f"`{said(rule, (first,))}` returned {one:g}, expected less than the {other:g} of "
                f"`{said(rule, (second,))}`",
                # Ranks are compared with each other only: rules that order alike are alike.
                got="equal" if one == other else "after",
            )

    return Case(name, run)


def _run_case(name: str, seed: int, factor: float) -> Case:
    def run(rule: Rule) -> None:
        each = end_to_end_s(_Yours(rule), seed)
        yours, plain = fmean(each), plain_s(seed)
        if yours > factor * plain:
            raise Wrong(
                f"requests took {yours:.2f} s on average, expected at most {factor * plain:.2f} s; "
                f"first come first served takes {plain:.2f} s",
                got=each,
            )

    return Case(name, run)


def _drawn(draw: random.Random) -> Case:
    """Both within their predictions, and clearly apart."""
    while True:
        jobs = []
        for _ in range(2):
            predicted = draw.randint(5, 800)
            jobs.append(Job(float(predicted), draw.randint(0, predicted - 1)))
        first, second = sorted(jobs, key=reference)
        if 2 * reference(first) < reference(second):
            return _before(f"{first} before {second}", first, second)


CASES = (
    _before("a short answer before a long one", Job(10.0, 0), Job(300.0, 0)),
    _before("an essay with five tokens to go", Job(300.0, 295), Job(40.0, 0)),
    _before("an essay that was predicted to be short", Job(50.0, 0), Job(10.0, 200)),
    _before("one token more than was predicted", Job(10.0, 11), Job(400.0, 0)),
    _run_case("80 requests on a modelled H100", 2, 0.8),
    _run_case("80 others", 5, 0.8),
)


SEEDS = (1, 3, 4)


def _score(rule: Rule) -> Score:
    yours = fmean(mean_s(_Yours(rule), seed) for seed in SEEDS)
    best = fmean(best_s(seed) for seed in SEEDS)
    plain = fmean(plain_s(seed) for seed in SEEDS)
    return Score(
        # 0 is first come, first served: the share of its loss that is won back.
        (plain - yours) / (plain - best),
        f"{yours:.2f} virtual seconds on average over three workloads; the worked solution takes "
        f"{best:.2f}, first come first served {plain:.2f}",
    )


def _overdue(rank: Callable[[Job], float]) -> Rule:
    return lambda job: job.predicted - job.written if job.written < job.predicted else rank(job)


EXERCISE = Exercise(
    key="45c.order",
    title="Which job goes first?",
    task="Return a number for a job: the smallest goes first. Predictions are mostly about right, "
    "and sometimes very wrong.",
    function="rank",
    parameters=("job",),
    returns=NUMBER,
    cases=CASES,
    random_case=_drawn,
    num_random=12,
    hints=(
        "What delays the others is not how long a job is, but how long it will still take.",
        "What is left of a job that has written more than was predicted? Not less than nothing, "
        "and not the prediction either: that was wrong.",
        "With heavy tails, a job that has lasted long will probably last as long again. Return "
        "job.predicted - job.written while that is positive, and job.written from then on.",
    ),
    misconceptions=(
        Misconception(
            "constant",
            "All jobs rank the same, so arrival decides: that is first come, first served, and "
            "one essay in front holds up all the short answers behind it.",
            (lambda job: 0,),
            written=(lambda job: 7.5,),
        ),
        Misconception(
            "reversed",
            "The long jobs go first. The smallest number goes first, and every job that waits for "
            "an essay waits for all of it.",
            (
                lambda job: job.written - job.predicted,
                lambda job: -job.predicted,
                lambda job: -reference(job),
            ),
        ),
        Misconception(
            "whole",
            "You rank by the whole length. An essay with five tokens to go delays no other job "
            "much: let it end, and its place and pages are free.",
            (
                lambda job: job.predicted,
                lambda job: max(job.predicted, job.written),
                lambda job: max(job.predicted, 2 * job.written),
            ),
        ),
        Misconception(
            "no prediction",
            "You rank by what was written, as a feedback queue does, and leave the prediction out: "
            "before the first token, an essay and a short answer rank alike.",
            (lambda job: job.written,),
        ),
        Misconception(
            "overdue first",
            "A job that outlives its prediction still ranks as a short one, or as good as done: an "
            "essay that was predicted to be short goes first from then on. That prediction was "
            "wrong, so it says nothing about what is left.",
            (
                lambda job: max(0, job.predicted - job.written),
                lambda job: job.predicted - job.written,
                _overdue(lambda job: job.predicted),
            ),
        ),
        Misconception(
            "banished",
            "One token over its prediction sends a job behind all others. It may end at any "
            "moment: predictions are rarely exact, and this punishes being nearly right.",
            (_overdue(lambda job: math.inf),),
        ),
    ),
    score=_score,
    naive={
        "average when overdue": _overdue(lambda job: 150.0),
        "four times as much again": _overdue(lambda job: 4.0 * job.written),
    },
    picture=Picture(
        "How long each of 80 requests takes",
        "request, the shortest answer first",
        "seconds",
        lambda rule: end_to_end_s(_Yours(rule), 2),
    ),
)
