"""Six challenges: a workload, a memory budget, limits in virtual seconds, and what may be changed.

Judged on the virtual clock, so a configuration has the same score on every machine. The defaults
solve none of them, and each has a worked solution in labs/solutions. Knows nothing about widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minserve.bench.compare.gpu import Gpu
from minserve.bench.compare.setup import Setup, Variant
from minserve.bench.compare.workload import Workload
from minserve.config import EngineConfig
from minserve.trace import RunTrace
from widgets import theme
from widgets.metrics import METRICS
from widgets.playground.result import PlayResult

MB, GB = 1 << 20, 1 << 30
OUT_OF, LEAST = 10.0, 5.0
"""Points for the par or better, and for just keeping every limit."""
OPEN = ("scheduling.", "memory.")
LOCKED = (
    "memory.kv_bytes",
    "memory.gpu_memory_utilization",
    "memory.check_integrity",
    "scheduling.max_model_len",
)
"""Not open in any challenge: the budget, and what would leave requests out."""


@dataclass(frozen=True)
class Goal:
    """A quantity that must not exceed its limit."""

    label: str
    read: Callable[[RunTrace], float | None]
    limit: float
    show: Callable[[float], str] = theme.format_seconds
    how: str = "modelled"

    @classmethod
    def of(cls, metric: str, limit: float) -> Goal:
        """A limit for one of the known quantities."""
        found = METRICS[metric]
        how = "counted" if found.counted else "modelled"
        return cls(found.label, found.read, limit, found.show, how)


@dataclass(frozen=True)
class Challenge:
    """What must be served, within which limits. The first limit is also the score."""

    key: str
    title: str
    text: str
    setup: Setup
    goals: tuple[Goal, ...]
    par: float
    """The first quantity that has all points."""
    locked: tuple[str, ...] = ()

    @property
    def start(self) -> Setup:
        """What the reader begins with: the defaults, and a variant without a change."""
        return replace(self.setup, clock="virtual", variants=(Variant("mine"),))

    at_most: Mapping[str, int] = field(default_factory=dict)
    """Path of a field -> the bytes that the machine of the task has for it."""

    def refuses(self, setup: Setup, side: str) -> str:
        """Why a side does not count, in a sentence; "" where it does."""
        ours = self.start
        for what in ("model", "workload", "clock", "gpu"):
            if getattr(setup, what) != getattr(ours, what):
                name = {"gpu": "GPU"}.get(what, what)
                return (
                    f"The {name} is not that of “{self.title}”: take the challenge again, or "
                    "leave it."
                )
        start, now = ours.config(ours.base_name).to_dict(), setup.config(side).to_dict()
        shut = (*LOCKED, *self.locked)
        for path, value in now.items():
            if value != start[path] and (path in shut or not path.startswith(OPEN)):
                return f"{path} may not be changed in “{self.title}”."
        for path, most in self.at_most.items():
            if now[path] > most:
                return f"{path} is {_binary(now[path])}, and this machine has {_binary(most)}."
        return ""

    def untouched(self, setup: Setup, side: str) -> bool:
        """True where nothing was changed yet."""
        ours: EngineConfig = self.start.config(self.start.base_name)
        return setup.config(side) == ours


@dataclass(frozen=True)
class Judgement:
    """What a side achieved."""

    sentence: str
    points: float = 0.0
    passed: bool = False
    counts: bool = True
    """False where the side is not one of the challenge's, so that it is no try."""


def judge(challenge: Challenge, trace: RunTrace, expected: int) -> Judgement:
    """The limits kept and broken by one run over `expected` requests."""
    served = sum(request.finish_reason == "length" for request in trace.requests)
    said, broken = [], served != expected
    if broken:
        said.append(f"{served} of {expected} requests served")
    values = [goal.read(trace) for goal in challenge.goals]
    for goal, value in zip(challenge.goals, values, strict=True):
        kept = value is not None and value <= goal.limit
        broken = broken or not kept
        shown = "nothing" if value is None else goal.show(value)
        sign = "within" if kept else "above"
        said.append(f"{goal.label} {shown}, {sign} {goal.show(goal.limit)} ({goal.how})")
    points = 0.0
    if not broken:
        first = values[0] or 0.0
        limit = challenge.goals[0].limit
        share = (limit - first) / (limit - challenge.par)
        points = round(LEAST + (OUT_OF - LEAST) * min(1.0, max(0.0, share)), 1)
    start = f"Solved, {points:g} of {OUT_OF:g} points" if not broken else "Not solved"
    return Judgement(f"{start}: {'; '.join(said)}.", points, not broken)


def judged(challenge: Challenge, result: PlayResult) -> dict[str, Judgement]:
    """Every side of a run that was changed, with what it achieved or why it does not count."""
    found: dict[str, Judgement] = {}
    setup = result.setup
    expected = len(challenge.start.traffic().requests)
    for name in setup.names:
        why = challenge.refuses(setup, name)
        if why:
            found[name] = Judgement(f"Not judged. {why}", counts=False)
        elif name in result.runs and not challenge.untouched(setup, name):
            found[name] = judge(challenge, result.runs[name][0].trace, expected)
    return found


def _host(limit: float) -> Goal:
    return Goal("host memory, peak", lambda trace: float(trace.totals.peak_host_bytes), limit,
                _binary, "counted")  # fmt: skip


def _binary(size: float) -> str:
    """Bytes as the task says them: "256 MiB"."""
    unit, name = (1 << 30, "GiB") if size >= 1 << 30 else (1 << 20, "MiB")
    return f"{size / unit:.3g} {name}"


def _base(**fields: Any) -> Mapping[str, Any]:
    return {name.replace("__", "."): value for name, value in fields.items()}


CHALLENGES: dict[str, Challenge] = {
    challenge.key: challenge
    for challenge in (
        Challenge(
            "shared",
            "One system prompt",
            "200 requests begin with the same system prompt and arrive fast. Serve them in 512 MiB "
            "of KV memory on a T4, so that 99 of 100 wait at most half a second for their first "
            "token.",
            Setup(
                model="qwen3-0.6b",
                base=_base(memory__kv_bytes=512 * MB),
                workload=Workload(
                    "shared-prefix",
                    {"count": 200, "prefix": 600, "groups": 1, "prompt": 40, "rate": 40.0},
                ),
                gpu=Gpu("T4", dtype="float16"),
                headline="ttft_p99_s",
            ),
            (Goal.of("ttft_p99_s", 0.5),),
            par=0.04,
        ),
        Challenge(
            "freeze",
            "No frozen chat",
            "Long prompts arrive among chats on an A100. No text may stop for more than 50 ms. But "
            "a first token that takes longer than 4 seconds is too late.",
            Setup(
                model="llama-3.1-8b",
                workload=Workload(
                    "independent",
                    {"count": 80, "prompt": 1200, "output": 100, "rate": 6.0,
                     "lengths": "pareto"},
                ),
                gpu=Gpu("A100 80GB SXM"),
                headline="itl_max_s",
            ),
            (Goal.of("itl_max_s", 0.05), Goal.of("ttft_p99_s", 4.0)),
            par=0.045,
        ),
        Challenge(
            "turns",
            "Short answers first",
            "200 requests wait for an H100 with eight slots. Most answers are short, a few very "
            "long. The average request must be done within 3 seconds.",
            Setup(
                model="llama-3.1-8b",
                base=_base(scheduling__max_num_seqs=8),
                workload=Workload("heavy-tail", {"count": 200, "output": 60}),
                headline="e2e_mean_s",
            ),
            (Goal.of("e2e_mean_s", 3.0),),
            par=2.65,
            locked=("scheduling.max_num_seqs",),
        ),
        Challenge(
            "sessions",
            "Users who return",
            "Sixteen conversations take turns on a T4, and 256 MiB of KV memory hold few of them. "
            "The host has 4 GiB. The median wait for a first token must fall below 0.4 seconds.",
            Setup(
                model="qwen3-0.6b",
                base=_base(memory__kv_bytes=256 * MB),
                workload=Workload(
                    "conversations",
                    {"count": 120, "turns": 8, "talks": 16, "prompt": 120, "output": 60,
                     "rate": 4.0, "lengths": "uniform"},
                ),
                gpu=Gpu("T4", dtype="float16"),
            ),
            (Goal.of("ttft_p50_s", 0.4), _host(4 * GB)),
            par=0.29,
            locked=("memory.disk_bytes",),
            at_most={"memory.host_bytes": 4 * GB},
        ),
        Challenge(
            "queue",
            "Six hundred at once",
            "600 requests wait for an H100. All must be done within 10 seconds, and no text may "
            "stop for more than 50 ms.",
            Setup(
                model="llama-3.1-8b",
                workload=Workload(
                    "independent", {"count": 600, "prompt": 64, "output": 96, "rate": 0.0}
                ),
                headline="duration_s",
            ),
            (Goal.of("duration_s", 10.0), Goal.of("itl_max_s", 0.05)),
            par=9.7,
        ),
        Challenge(
            "evicted",
            "No request thrown out",
            "80 requests with long answers share 256 MiB of KV memory on a T4. When pages run out, "
            "a running text stops for seconds. No text may stop for more than half a second, and "
            "all must be done within 40 seconds.",
            Setup(
                model="qwen3-0.6b",
                base=_base(memory__kv_bytes=256 * MB),
                workload=Workload(
                    "independent",
                    {"count": 80, "prompt": 60, "output": 300, "rate": 0.0,
                     "lengths": "uniform"},
                ),
                gpu=Gpu("T4", dtype="float16"),
                headline="itl_max_s",
            ),
            (Goal.of("itl_max_s", 0.5), Goal.of("duration_s", 40.0)),
            par=0.3,
        ),
    )
}  # fmt: skip
"""By key, from the easiest on."""
