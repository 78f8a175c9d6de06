"""The kinds of workloads: what `bench.workloads` can draw, traces, and the reader's own prompts.

Importing the room fills `workload.KINDS`.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minserve.bench.compare.errors import SetupError
from minserve.bench.compare.listed import traffic_of
from minserve.bench.compare.workload import KINDS, Kind, Make, Parameter, Sources, Workload
from minserve.bench.workloads import conversations, length_draws
from minserve.bench.workloads.arrivals import Arrivals, gamma_arrivals, on_off_arrivals
from minserve.bench.workloads.heavy_tail import COMMITTED, heavy_tail
from minserve.bench.workloads.length_draws import Lengths
from minserve.bench.workloads.traces import TraceError, read_trace, to_traffic
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length, poisson, traffic
from minserve.bench.workloads.workload import race_workload
from minserve.files.json_file import FileError

Parameters = tuple[Parameter, ...]
LENGTHS = ("fixed", "uniform", "exponential", "lognormal", "pareto")
_MOST_TRACE_BYTES = 200 << 20
_SEED = Parameter("seed", 0, 0, 1 << 30, "seed")
_ARRIVALS = (
    Parameter("rate", 16.0, 0.0, 10_000.0, "requests per second (0: all wait at the start)"),
    Parameter("burstiness", 1.0, 0.05, 100.0, "burstiness (1: Poisson, below 1: bursts)"),
    Parameter("on", 10.0, 0.01, 1e6, "arrivals on, in mean gaps (with off above 0)"),
    Parameter("off", 0.0, 0.0, 1e6, "arrivals off, in mean gaps (0: never)"),
    Parameter("urgent", 0.0, 0.0, 1.0, "share of urgent requests (order: priority)"),
)


def _drawn(*own: Parameter, count: int = 48, prompt: int = 48, output: int = 24) -> Parameters:
    lengths = (
        Parameter("count", count, 1, 5000, "requests"),
        Parameter("prompt", prompt, 1, 100_000, "mean tokens of a prompt's own part", "tokens"),
        Parameter("output", output, 1, 20_000, "mean tokens of an answer", "tokens"),
        Parameter("lengths", "exponential", label="distribution of lengths", choices=LENGTHS),
    )
    return (*lengths, *own, *_ARRIVALS, _SEED)


def _add(name: str, label: str, doc: str, parameters: Sequence[Parameter], make: Make) -> None:
    KINDS[name] = Kind(name, label, doc, tuple(parameters), make)


def _lengths(workload: Workload, name: str) -> Lengths:
    mean, kind = workload.whole(name), str(workload.get("lengths"))
    if kind == "uniform":
        return length_draws.uniform(1, 2 * mean - 1)
    found: Lengths = getattr(length_draws, kind)(mean)
    return found


def _arriving(workload: Workload, jobs: conversations.Jobs) -> Traffic:
    """Requests of this shape with the workload's own arrivals."""
    arrivals: Arrivals = gamma_arrivals(workload.number("burstiness"))
    if workload.number("off") > 0:
        arrivals = on_off_arrivals(workload.number("on"), workload.number("off"))
    rate, seed = workload.number("rate"), workload.whole("seed")
    name = f"{KINDS[workload.kind].label}, {workload.whole('count')} requests"
    made = traffic(jobs, workload.whole("count"), rate or 1.0, arrivals, seed, name)
    if workload.number("urgent"):
        made = _with_urgent(made, workload.number("urgent"))
    return made if rate else _at_the_start(made)


def _with_urgent(made: Traffic, share: float) -> Traffic:
    """Urgent requests have priority 0, the others 1: the smallest number goes first."""
    draw = random.Random(f"{made.seed} urgent")
    requests = tuple(replace(each, priority=int(draw.random() >= share)) for each in made.requests)
    return replace(made, requests=requests)


def _at_the_start(made: Traffic) -> Traffic:
    requests = tuple(replace(each, gap=0.0) for each in made.requests)
    return replace(made, requests=requests, rate_per_s=None)


def _independent(workload: Workload, sources: Sources) -> Traffic:
    prompts, outputs = _lengths(workload, "prompt"), _lengths(workload, "output")
    return _arriving(workload, conversations.independent(prompts, outputs, sources.vocab_size))


def _shared_prefix(workload: Workload, sources: Sources) -> Traffic:
    jobs = conversations.shared_prefix(
        workload.whole("prefix"),
        _lengths(workload, "prompt"),
        _lengths(workload, "output"),
        workload.whole("groups"),
        sources.vocab_size,
    )
    return _arriving(workload, jobs)


def _few_shot(workload: Workload, sources: Sources) -> Traffic:
    examples = workload.whole("examples")
    jobs = conversations.few_shot(
        examples,
        length_draws.fixed(workload.whole("example")),
        min(examples, workload.whole("shown")),
        _lengths(workload, "prompt"),
        _lengths(workload, "output"),
        sources.vocab_size,
    )
    return _arriving(workload, jobs)


def _conversations(workload: Workload, sources: Sources) -> Traffic:
    jobs = conversations.multi_turn(
        workload.whole("turns"),
        _lengths(workload, "prompt"),
        _lengths(workload, "output"),
        workload.whole("talks"),
        sources.vocab_size,
    )
    return _arriving(workload, jobs)


_MOST_NODES = 512


def _agent_tree(workload: Workload, sources: Sources) -> Traffic:
    branches, depth = workload.whole("branches"), workload.whole("depth")
    if branches**depth > _MOST_NODES:
        raise SetupError(
            f"a tree of {branches} branches and {depth} levels has {branches**depth:,} leaves, and "
            f"{_MOST_NODES} are allowed: choose fewer"
        )
    jobs = conversations.agent_tree(
        branches,
        depth,
        _lengths(workload, "prompt"),
        _lengths(workload, "output"),
        sources.vocab_size,
    )
    return _arriving(workload, jobs)


def _heavy_tail(workload: Workload, sources: Sources) -> Traffic:
    rows = heavy_tail(
        workload.number("spread"), workload.whole("count"), workload.whole("output"),
        workload.whole("seed"),
    )  # fmt: skip
    return to_traffic(rows, name="heavy-tailed answers", vocab_size=sources.vocab_size)


def _race(workload: Workload, sources: Sources) -> Traffic:
    vocab = max(4, sources.vocab_size)
    items = race_workload(vocab, workload.whole("count"), workload.whole("seed"))
    return at_once(
        [item.prompt_token_ids for item in items.items],
        [fixed_length(item.max_tokens) for item in items.items],
        items.name,
    )


def _trace(workload: Workload, sources: Sources) -> Traffic:
    path = Path(str(workload.get("file")))
    if path == Path(COMMITTED.name) and not path.exists():
        path = COMMITTED
    try:
        found = path.stat()
    except OSError:
        raise SetupError(f"there is no trace {path.name!r}: give the path of its file") from None
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_TRACE_BYTES:
        raise SetupError(f"{path.name} is no file of at most {_MOST_TRACE_BYTES >> 20} MiB")
    try:
        rows = read_trace(path)
    except (FileError, TraceError) as error:
        raise SetupError(str(error)) from None
    rows = sorted(rows, key=lambda row: row.timestamp_s)[: workload.whole("count")]
    speed = workload.number("speed")
    rows = [replace(row, timestamp_s=row.timestamp_s / speed) for row in rows]
    return to_traffic(rows, name=f"trace {path.name}", vocab_size=sources.vocab_size)


def _prompts(workload: Workload, sources: Sources) -> Traffic:
    if not workload.prompts:
        raise SetupError("there is no prompt yet: write one prompt per line")
    if sources.encode is None:
        raise SetupError("this model has no tokenizer: choose another model, or another workload")
    prompts = [tuple(sources.encode(prompt)) for prompt in workload.prompts]
    lengths = [fixed_length(workload.whole("output"))] * len(prompts)
    rate, name = workload.number("rate"), "your own prompts"
    if not rate:
        return at_once(prompts, lengths, name)
    return poisson(prompts, lengths, rate, workload.whole("seed"), name)


def _listed(workload: Workload, sources: Sources) -> Traffic:
    if not workload.rows:
        raise SetupError("the list of requests is empty: open a chapter's comparison here")
    rate = workload.number("rate") or None
    seed = workload.whole("seed")
    return traffic_of(workload.rows, rate, sources.vocab_size, "requests of a chapter", seed)


_add(
    "shared-prefix", "system prompts", "Every prompt begins with one of a few system prompts.",
    _drawn(
        Parameter("prefix", 96, 1, 100_000, "tokens of a system prompt", "tokens"),
        Parameter("groups", 2, 1, 1000, "system prompts"),
    ),
    _shared_prefix,
)  # fmt: skip
_add(
    "independent", "independent requests", "No two prompts share a prefix.", _drawn(), _independent
)
_add(
    "few-shot", "few-shot examples",
    "Prompts begin with the first few examples of one fixed list, then ask a question.",
    _drawn(
        Parameter("examples", 8, 1, 1000, "examples in the list"),
        Parameter("shown", 2, 0, 1000, "examples shown at least"),
        Parameter("example", 24, 1, 10_000, "tokens of an example", "tokens"),
    ),
    _few_shot,
)  # fmt: skip
_add(
    "conversations", "conversations",
    "Sessions with several turns: a prompt is the whole conversation so far and a new question.",
    _drawn(
        Parameter("turns", 4, 1, 100, "questions in a conversation"),
        Parameter("talks", 8, 1, 1000, "conversations at once"),
    ),
    _conversations,
)  # fmt: skip
_add(
    "agent-tree", "trees of thought",
    "A task branches, and each branch again; a prompt is the path from the root.",
    _drawn(
        Parameter("branches", 3, 1, 16, "branches of a node"),
        Parameter("depth", 3, 1, 9, "levels"),
    ),
    _agent_tree,
)  # fmt: skip
_add(
    "heavy-tail", "heavy-tailed answers",
    "All requests wait at the start. Most answers are short, a few very long.",
    (
        Parameter("count", 64, 1, 5000, "requests"),
        Parameter("output", 16, 1, 200, "mean tokens of an answer", "tokens"),
        Parameter("spread", 2.0, 0.0, 4.0, "spread of answers (0: all alike)"),
        _SEED,
    ),
    _heavy_tail,
)  # fmt: skip
_add(
    "race", "the benchmarks' race", "All at the start: 32 to 256 tokens in, 32 to 128 out.",
    (Parameter("count", 16, 1, 1000, "requests"), _SEED), _race,
)  # fmt: skip
_add(
    "trace", "a recorded trace",
    "Lengths, arrivals and shared prefixes of recorded traffic: Mooncake, Azure, BurstGPT or "
    "ShareGPT. One trace ships with the lab.",
    (
        Parameter("file", COMMITTED.name, label="file", text=True),
        Parameter("count", 100, 1, 5000, "requests, from the beginning"),
        Parameter("speed", 1.0, 0.01, 1000.0, "times as fast as recorded"),
    ),
    _trace,
)  # fmt: skip
_add(
    "prompts", "your own prompts", "One prompt per line.",
    (
        Parameter("output", 24, 2, 2000, "tokens of each answer", "tokens"),
        Parameter("rate", 0.0, 0.0, 10_000.0, "requests per second (0: all wait at the start)"),
        _SEED,
    ),
    _prompts,
)  # fmt: skip
_add(
    "listed", "requests of a chapter",
    "The lengths, arrivals and shared prefixes of a chapter's requests; tokens are drawn again.",
    (Parameter("rate", 0.0, 0.0, 1e6, "requests per second (0: all wait at the start)"), _SEED),
    _listed,
)  # fmt: skip
