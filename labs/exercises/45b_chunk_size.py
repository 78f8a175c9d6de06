"""Chapter 45b: how many tokens of a long prompt this step may take, under a latency target."""

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
from minserve.hardware import DEVICES, WorkCounter, roofline
from minserve.request import Request
from minserve.scheduling import BatchingPolicy, ContinuousBatching
from minserve.trace import RunTrace
from minserve.virtual import CostModel
from widgets.panels import Case, Exercise, Failure, Misconception, Score, Wrong


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
    estimate_s: Callable[[int], float]
    """Modelled seconds of this step, chats included, with a chunk of so many tokens."""


Rule = Callable[[Step], int]

SPEC = SHAPES["llama-3.1-8b"].spec()
COST = CostModel(DEVICES["H100 SXM"], efficiency=0.5, overhead_s=2e-4)
PLACES, LONG, AT_LEAST = 8, 2000, 64


class _Yours(ContinuousBatching):
    """The learner's rule sets the token budget of every step with a long prompt in it."""

    def __init__(self, rule: Rule, target_s: float) -> None:
        self.rule, self.target_s = rule, target_s
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
        return len(decoding) + _answer(self.rule, step)


def _answer(rule: Rule, step: Step) -> int:
    answer = rule(step)
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise Wrong(f"it returned {answer!r}, expected a whole number of tokens", got=answer)
    if not 1 <= answer <= step.prompt_left:
        raise Wrong(
            f"it returned {answer}, expected 1 to {step.prompt_left} tokens", got=answer, expected=1
        )
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
        if got > best:
            takes = f"{1e3 * step.estimate_s(got):.0f} ms, target {1e3 * step.target_s:.0f}"
            raise Wrong(f"a chunk of {got} is too large: {takes}", got=got, expected=best)
        if got < 0.9 * best:
            raise Wrong(f"a chunk of {got}, where {best} would do", got=got, expected=best)

    return Case(name, run, (step,))


def _run_case(name: str, prompt_tokens: int, target_s: float) -> Case:
    def run(rule: Rule) -> None:
        stall = serve(prompt_tokens, _Yours(rule, target_s)).summary().itl_s
        if stall is not None and stall.max > 1.001 * target_s:
            raise Wrong(
                f"a chat waited {1e3 * stall.max:.0f} ms for a token, target {1e3 * target_s:.0f}"
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
        AT_LEAST,
        draw.uniform(1.5, 8) * floor_s,
        _roof(floor_s, 0.5 * floor_s, per_token_s),
    )
    return _asked(f"{step.decoding} chats, {step.prompt_left} tokens left", step)


_FIRST, _LAST, _ALONE = "a step with room", "the last tokens of a prompt", "nobody decodes"
_DEEP, _LATE = "deep in a long prompt", "the target cannot be met"
_STEPS = (_FIRST, _DEEP)

CASES = (
    _asked(_FIRST, Step(7, 30_000, AT_LEAST, 0.05, _roof(0.012, 0.01, 4e-5))),
    _asked(_DEEP, Step(7, 9_000, AT_LEAST, 0.05, _roof(0.012, 0.01, 1.3e-4))),
    _asked(_LAST, Step(7, 50, AT_LEAST, 0.05, _line(0.01, 1e-4))),
    _asked(_ALONE, Step(0, 12_000, AT_LEAST, 0.05, _line(0.01, 1e-4))),
    _asked(_LATE, Step(7, 12_000, AT_LEAST, 0.01, _line(0.012, 1e-4))),
    _run_case("32,000 tokens, at most 40 ms", 32_000, 0.04),
    _run_case("12,000 tokens, at most 25 ms", 12_000, 0.025),
)


def _of(failures: Sequence[Failure], *names: str) -> list[Failure]:
    return [failure for failure in failures if failure.case.name in names]


def _same_everywhere(failures: Sequence[Failure]) -> bool:
    found = [failure.got for failure in failures if failure.got is not None]
    return len(found) > 2 and len(set(found)) == 1 and found[0] != AT_LEAST


def _is_whole(failures: Sequence[Failure]) -> bool:
    found = _of(failures, *_STEPS)
    return bool(found) and all(f.got == f.case.args[0].prompt_left for f in found)


SCORED = ((32_000, 0.03), (32_000, 0.08), (8_000, 0.02))


def _score(rule: Rule) -> Score:
    yours = sum(prefill_s(serve(n, _Yours(rule, target_s))) for n, target_s in SCORED)
    best = sum(prefill_s(serve(n, _Yours(largest_fit, target_s))) for n, target_s in SCORED)
    return Score(
        best / yours,
        f"three long prompts read in {yours:.2f} virtual seconds without one step over its "
        f"target; the worked solution takes {best:.2f}",
    )


def _zero_when_late(step: Step) -> int:
    chunk = largest_fit(step)
    return 0 if step.decoding and step.estimate_s(chunk) > step.target_s else chunk


def _always_careful(step: Step) -> int:
    return largest_fit(Step(1, step.prompt_left, step.at_least, step.target_s, step.estimate_s))


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


EXERCISE = Exercise(
    key="45b.chunk_size",
    title="How large a chunk?",
    task="Return how many tokens of the long prompt this step takes: as many as the target allows.",
    function="chunk",
    cases=CASES,
    random_case=_drawn,
    hints=(
        "Whom does a long step hurt? Where step.decoding is 0, nobody waits.",
        "step.estimate_s(n) only grows with n. Between 1 and step.prompt_left there is one place "
        "where it passes the target: halve your way to it.",
        "Keep fits = 0 and too_many = step.prompt_left, test the middle, move one of them. At the "
        "end take no less than step.at_least and no more than step.prompt_left.",
    ),
    misconceptions=(
        Misconception(
            "whole",
            "You take all that is left of the prompt: no chunking, and every chat waits for it.",
            _is_whole,
        ),
        Misconception(
            "fixed",
            "You take the same number every time. The same chunk costs more the deeper it lies in "
            "the prompt, because its tokens attend to all before them.",
            _same_everywhere,
        ),
        Misconception(
            "like a decode",
            "You divide the target by the time of a one-token step. That step mostly reads "
            "the weights; a hundred tokens more share the same reading and cost next to nothing.",
            lambda failures: any(f.got < 0.5 * f.expected for f in _of(failures, *_STEPS)),
        ),
        Misconception(
            "without base",
            "You divide the target by the price of one more token, and forget what the step costs "
            "before the first: the chats' own tokens, and a base that is always paid.",
            lambda failures: any(f.got > f.expected for f in _of(failures, *_STEPS)),
        ),
        Misconception(
            "starves",
            "Where no chunk meets the target you take none, so the prompt never ends. The "
            "step is late anyhow: take step.at_least and move on.",
            lambda failures: bool(_of(failures, _LATE)),
        ),
        Misconception(
            "alone",
            "You keep to the target although nobody decodes. Nobody can be frozen: take "
            "everything, and the prompt is done sooner.",
            lambda failures: bool(_of(failures, _ALONE)),
        ),
    ),
    score=_score,
    wrong={
        "whole": lambda step: step.prompt_left,
        "fixed": lambda step: 512,
        "like a decode": _like_decode,
        "without base": _without_base,
        "starves": _zero_when_late,
        "alone": _always_careful,
    },
)
