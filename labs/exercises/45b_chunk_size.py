"""Chapter 45b: how many tokens of a long prompt this step may take, under a latency target."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.build import build_virtual_engine
from minserve.config import EngineConfig
from minserve.engine.parts import EngineParts
from minserve.hardware import DEVICES, WorkCounter, roofline
from minserve.request import Request
from minserve.scheduling import BatchingPolicy, ContinuousBatching
from minserve.trace import RunTrace
from minserve.virtual import CostModel
from widgets.panels import Case, Exercise, Misconception, Picture, Score, Wrong
from widgets.panels.exercises.asked import Asked, said
from widgets.panels.exercises.exercise import Like
from widgets.panels.exercises.returns import WHOLE_NUMBER


@dataclass(frozen=True)
class Step:
    """One step, before it is decided."""

    decoding: int
    """Chats that get a token in it, and wait for it to end."""
    prompt_left: int
    """Tokens of the long prompt that are still to be computed."""
    at_least: int
    """Take this many even if the target is missed: a prompt must not starve."""
    target_s: float
    """The longest step the chats accept."""
    estimate_s: Callable[[int], float] = field(repr=False)
    """Modelled seconds of this step, chats included, with a chunk of so many tokens."""


Rule = Callable[[Step], int]

SPEC = SHAPES["llama-3.1-8b"].spec()
COST = CostModel(DEVICES["H100 SXM"], efficiency=0.5, overhead_s=2e-4)
PLACES, LONG, AT_LEAST = 8, 2000, 64
SLACK = 0.9
"""Of the largest chunk that meets the target: less is told to take more."""


class _Yours(ContinuousBatching):
    """The reader's rule sets the token budget of every step with a long prompt in it."""

    def __init__(self, rule: Rule, target_s: float) -> None:
        self.rule, self.target_s = rule, target_s
        self.chunks = 0
        """Steps with a part of the prompt, so far."""
        self._counter = WorkCounter(SPEC, 2)

    def budget(self, limit: int, running: Sequence[Request], waiting: Sequence[Request]) -> int:
        decoding = [one for one in running if one.num_uncomputed_tokens == 1]
        reading = [one for one in running if one.num_uncomputed_tokens > 1]
        if not reading and waiting and len(running) < PLACES:
            reading = [waiting[0]]
        if not reading or len(reading[0].prompt_token_ids) < LONG:
            return limit
        prompt = reading[0]

        def estimate_s(tokens: int) -> float:
            lens = [1] * len(decoding) + [tokens]
            contexts = [one.num_tokens for one in decoding]
            contexts.append(prompt.num_computed_tokens + tokens)
            work = self._counter.count(lens, contexts, len(lens))
            bound_s = roofline(work, COST.device, COST.dtype).bound_s
            return bound_s / COST.efficiency + COST.overhead_s

        step = Step(
            len(decoding), prompt.num_uncomputed_tokens, AT_LEAST, self.target_s, estimate_s
        )
        self.chunks += 1
        answer = _answer(self.rule, step)
        if answer < SLACK * min(step.at_least, step.prompt_left):
            # Thousands of such steps would follow.
            shown = f"`{said(self.rule, (step,))}` returned {answer}"
            raise Wrong(f"{shown}, and `step.at_least` is {step.at_least}")
        return len(decoding) + answer


def _answer(rule: Rule, step: Step) -> int:
    answer = rule(step)
    if not 1 <= answer <= step.prompt_left:
        shown = f"`{said(rule, (step,))}` returned {answer}"
        raise Wrong(f"{shown}, expected 1 to {step.prompt_left} tokens")
    return answer


def serve(prompt_tokens: int, policy: BatchingPolicy) -> RunTrace:
    """Seven chats write, an eighth makes room for a long prompt; time is modelled."""
    config = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": PLACES,
            "scheduling.max_model_len": 33_000,
            "scheduling.max_num_batched_tokens": 33_000,
            "trace.per_request": True,
        }
    )
    engine = build_virtual_engine(SPEC, config, COST, parts=EngineParts(policy=policy))
    prompts = [[1] * 500] * PLACES + [[1] * prompt_tokens]
    lengths = [8] + [150] * (PLACES - 1) + [4]
    drive(engine, at_once(prompts, [fixed_length(length) for length in lengths]))
    return engine.trace


def prefill_s(trace: RunTrace) -> float:
    """From the long prompt's first step to its first token."""
    longest = max(trace.requests, key=lambda one: one.metrics.num_prompt_tokens).metrics
    return (longest.first_token_s or 0.0) - (longest.first_scheduled_s or 0.0)


def largest_fit(step: Step) -> int:
    """The largest chunk whose step meets the target, by bisection."""
    if not step.decoding or step.estimate_s(step.prompt_left) <= step.target_s:
        return step.prompt_left
    fits, too_many = 0, step.prompt_left
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if step.estimate_s(middle) <= step.target_s:
            fits = middle
        else:
            too_many = middle
    return min(max(fits, step.at_least), step.prompt_left)


def _asked(name: str, step: Step) -> Case:
    def run(rule: Rule) -> None:
        got, best = _answer(rule, step), largest_fit(step)
        shown = f"`{said(rule, (step,))}` returned {got}"
        if got > best:
            takes = f"{1e3 * step.estimate_s(got):.2f} ms"
            raise Wrong(
                f"{shown}: that step takes {takes}, and the target is {1e3 * step.target_s:.2f} ms"
                if best > step.at_least or step.estimate_s(best) <= step.target_s
                else f"{shown}, expected {best}: the target cannot be met"
            )
        if got < SLACK * best:
            raise Wrong(f"{shown}, where {best} tokens would do (at least {SLACK:.0%} of them)")

    return Case(name, run)


def _run_case(name: str, prompt_tokens: int, target_s: float) -> Case:
    def run(rule: Rule) -> None:
        stall = serve(prompt_tokens, _Yours(rule, target_s)).summary().itl_s
        if stall is not None and stall.max > 1.001 * target_s:
            raise Wrong(
                f"a chat waited {1e3 * stall.max:.2f} ms for a token, and the target is "
                f"{1e3 * target_s:.2f} ms"
            )

    return Case(name, run)


def _line(base_s: float, per_token_s: float) -> Callable[[int], float]:
    return lambda tokens: base_s + per_token_s * tokens


def _roof(floor_s: float, base_s: float, per_token_s: float) -> Callable[[int], float]:
    return lambda tokens: max(floor_s, base_s + per_token_s * tokens)


def _drawn(draw: random.Random) -> Case:
    floor_s, per_token_s = draw.uniform(0.004, 0.02), draw.uniform(2e-5, 2e-4)
    step = Step(
        draw.randint(1, 7),
        draw.randint(100, 30_000),
        draw.choice((16, AT_LEAST, 256)),
        draw.uniform(1.5, 8) * floor_s,
        _roof(floor_s, 0.5 * floor_s, per_token_s),
    )
    return _asked(f"{step.decoding} chats, {step.prompt_left} tokens left", step)


CASES = (
    _asked("a step with room", Step(7, 30_000, AT_LEAST, 0.05, _roof(0.012, 0.01, 4e-5))),
    _asked("deep in a long prompt", Step(7, 9_000, AT_LEAST, 0.05, _roof(0.012, 0.01, 1.3e-4))),
    _asked("the last tokens of a prompt", Step(7, 50, AT_LEAST, 0.05, _line(0.01, 1e-4))),
    _asked("no chat waits", Step(0, 12_000, AT_LEAST, 0.05, _line(0.01, 1e-4))),
    _asked("the target cannot be met", Step(7, 12_000, AT_LEAST, 0.01, _line(0.012, 1e-4))),
    _asked("the same, and at least 256", Step(7, 12_000, 256, 0.01, _line(0.012, 1e-4))),
    _asked("the same, and 40 tokens left", Step(7, 40, AT_LEAST, 0.01, _line(0.012, 1e-4))),
    _run_case("32,000 tokens, at most 40 ms", 32_000, 0.04),
    _run_case("12,000 tokens, at most 25 ms", 12_000, 0.025),
)


SCORED = ((32_000, 0.03), (32_000, 0.08), (8_000, 0.02))


def _score(rule: Rule) -> Score:
    """Steps, and not seconds: with chunks this large the arithmetic of the prompt is nearly all of
    the time, however it is cut. A step more is one more token that the chats get late."""

    def cost(of: Rule) -> tuple[int, float]:
        runs = [(n, _Yours(of, target_s)) for n, target_s in SCORED]
        seconds = sum(prefill_s(serve(n, policy)) for n, policy in runs)
        return sum(policy.chunks for _, policy in runs), seconds

    (yours, yours_s), (best, best_s) = cost(rule), cost(largest_fit)
    return Score(
        best / yours,
        f"three long prompts read in {yours} steps and {yours_s:.2f} virtual seconds, no step over "
        f"its target; the worked solution takes {best} and {best_s:.2f}",
    )


def _zero_when_late(step: Step) -> int:
    chunk = largest_fit(step)
    return 0 if step.decoding and step.estimate_s(chunk) > step.target_s else chunk


def _one_when_late(step: Step) -> int:
    return max(1, _zero_when_late(step))


def _without_least(step: Step) -> int:
    """What fits, and nothing where nothing fits."""
    return largest_fit(replace(step, at_least=0))


def _at_least_one(step: Step) -> int:
    return max(1, _without_least(step))


def _always_careful(step: Step) -> int:
    return largest_fit(replace(step, decoding=1))


def _like_decode(step: Step) -> int:
    if not step.decoding:
        return step.prompt_left
    fits = int(step.target_s / step.estimate_s(1))
    return min(max(fits, step.at_least), step.prompt_left)


def _without_base(step: Step) -> int:
    if not step.decoding:
        return step.prompt_left
    per_token_s = (step.estimate_s(5000) - step.estimate_s(4000)) / 1000
    return min(max(int(step.target_s / per_token_s), step.at_least), step.prompt_left)


def _to_be_safe(step: Step) -> int:
    """A tenth less than what fits."""
    best = largest_fit(step)
    careful = max(math.ceil(SLACK * best), min(step.at_least, step.prompt_left))
    return best if best == step.prompt_left else careful


def _chunks(rule: Asked) -> list[float]:
    # Where an answer is out of range, what came before it is drawn.
    with contextlib.suppress(Wrong):
        serve(32_000, _Yours(rule, 0.04))
    return list(rule.answers)


EXERCISE = Exercise(
    key="45b.chunk_size",
    title="How large a chunk?",
    task="Return how many tokens of the long prompt this step takes: as many as the target allows.",
    function="chunk",
    parameters=("step",),
    returns=WHOLE_NUMBER,
    cases=CASES,
    random_case=_drawn,
    hints=(
        "Which request does a long step hurt? Where step.decoding is 0, no chat waits.",
        "step.estimate_s(n) only grows with n. Between 1 and step.prompt_left there is one place "
        "where it passes the target: find it by halving.",
        "Keep fits = 0 and too_many = step.prompt_left, test the middle, move one of them. At the "
        "end take no less than step.at_least and no more than step.prompt_left.",
    ),
    misconceptions=(
        Misconception(
            "whole",
            "You take all that is left of the prompt: no chunking, and every chat waits for it.",
            (lambda step: step.prompt_left,),
        ),
        Misconception(
            "fixed",
            "You take the same number every time. The same chunk takes longer the deeper it lies "
            "in the prompt, because its tokens attend to all before them.",
            (
                Like(lambda first: lambda step: first),
                Like(lambda first: lambda step: min(first, step.prompt_left)),
            ),
            written=(lambda step: 512, lambda step: min(2000, step.prompt_left)),
        ),
        Misconception(
            "like a decode",
            "You divide the target by the time of a one-token step. That step mostly reads the "
            "weights; a hundred tokens more share the same reading, at almost no extra time.",
            (_like_decode,),
        ),
        Misconception(
            "without base",
            "You divide the target by the price of one more token, and leave out what the step "
            "costs before the first: the chats' own tokens, and a base that is always paid.",
            (_without_base,),
        ),
        Misconception(
            "starves",
            "Where no chunk meets the target you take almost none, so the prompt never ends. The "
            "step is late in any case: take step.at_least and move on.",
            (_zero_when_late, _one_when_late, _without_least, _at_least_one),
        ),
        Misconception(
            "least",
            "You take step.at_least every time. Where the target leaves room, that reads the "
            "weights more often than it has to, and the prompt ends later.",
            (lambda step: min(step.at_least, step.prompt_left),),
        ),
        Misconception(
            "alone",
            "You keep to the target although no chat waits. Take everything, and the prompt is "
            "done sooner.",
            (_always_careful,),
        ),
    ),
    score=_score,
    naive={"a tenth less, to be safe": _to_be_safe},
    picture=Picture(
        "The chunks of a prompt of 32,000 tokens", "step with a chunk", "tokens", _chunks
    ),
)
