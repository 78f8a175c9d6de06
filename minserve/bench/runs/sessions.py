"""Idle conversations: how many fit in a small pool and the tiers below it, and what
returning costs.

Each session sends a prompt, is idle while all others have their turn, and returns with its whole
history and a new question. CachedAttention (Gao et al., arXiv 2403.19708), Pensieve (Yu and Li,
arXiv 2312.05516), Mooncake (Qin et al., arXiv 2407.00079).
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from minserve.bench.common import Race, frame, print_table
from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length
from minserve.build import build_engine
from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.loading import LoadedModel, find_model, load_model
from minserve.memory import TokenBlocks, root_key
from minserve.request import SamplingParams
from minserve.trace import RunTrace
from minserve.trace.summary import distribution

IDLE = EngineConfig(dtype="float32").with_values(
    {
        "memory.prefix_cache": "radix",
        "memory.resume": "load",
        # One at a time, so that a session's first token does not wait for other sessions.
        "scheduling.max_num_seqs": 1,
        "scheduling.max_num_batched_tokens": 512,
    }
)
"""The settings that all sides share."""

TIERS = ("device", "host", "disk", "gone")


def random_tokens(count: int, seed: str) -> list[int]:
    """A random text, the same for the same seed."""
    draw = random.Random(seed)
    return [draw.randrange(2, 4000) for _ in range(count)]


def tier_of(engine: Engine, token_ids: Sequence[int]) -> str:
    """The slowest tier that holds a page of this history; "gone" if a page is in none."""
    prefix, size = engine.memory.prefix, engine.memory.block_size
    if prefix is None:
        return "gone"
    blocks = len(token_ids) // size
    token_blocks = TokenBlocks(root_key(()), list(token_ids), size)
    hit = prefix.lookup(token_blocks, blocks * size)
    if len(hit.blocks) + len(hit.keys) < blocks:
        return "gone"
    return next((tier for tier in ("disk", "host") if tier in hit.tiers), "device")


@dataclass(frozen=True)
class SessionsRun:
    """Results of many sessions."""

    trace: RunTrace
    where: tuple[str, ...]
    """Tier of each session's history while all were idle."""
    token_ids: tuple[tuple[int, ...], ...]
    """Both answers of each session."""
    resume_s: tuple[float, ...]
    """Seconds from a returning session's first step to its first token, loading included."""
    cached_tokens: tuple[int, ...]
    """Tokens of each returning prompt that were found, in any tier."""
    disk_bytes: int
    """Bytes on disk while all were idle."""
    order: tuple[int, ...]
    """Sessions in the order in which they returned."""

    @property
    def held(self) -> Mapping[str, int]:
        """Sessions by tier."""
        found = Counter(self.where)
        return {tier: found[tier] for tier in TIERS}


def run_sessions(
    loaded: LoadedModel, num_sessions: int, history: int, question: int = 8, answer: int = 2
) -> SessionsRun:
    """Run the first turn of all sessions, then the second of all, on a new engine.

    `history` is the tokens of the first prompt and its answer together.
    """
    return play_sessions(build_engine(loaded), num_sessions, history, question, answer)


def play_sessions(
    engine: Engine, num_sessions: int, history: int, question: int = 8, answer: int = 2
) -> SessionsRun:
    """The same on an engine that is given, real or virtual. Closes it."""
    params = fixed_length(answer)
    try:
        prompts = [random_tokens(history - answer, f"session {n}") for n in range(num_sessions)]
        first = drive(engine, at_once(prompts, [params] * num_sessions)).requests
        histories = [one.token_ids for one in first]
        # The last token of an answer was drawn but not computed.
        where = tuple(tier_of(engine, tokens[:-1]) for tokens in histories)
        disk = engine.memory.host.disk if engine.memory.host is not None else None
        disk_bytes = disk.used_bytes if disk is not None else 0
        prompts = [
            tokens + random_tokens(question, f"question {n}") for n, tokens in enumerate(histories)
        ]
        # Sessions return in random order: the order in which they became idle is the
        # worst case of LRU.
        order = list(range(num_sessions))
        random.Random("who comes back when").shuffle(order)
        back = at_once([prompts[n] for n in order], [params] * num_sessions)
        found = dict(zip(order, drive(engine, back).requests, strict=True))
        second = [found[n] for n in range(num_sessions)]
    finally:
        engine.close()
    return SessionsRun(
        trace=engine.trace,
        where=where,
        token_ids=tuple(
            (*a.output_token_ids, *b.output_token_ids) for a, b in zip(first, second, strict=True)
        ),
        resume_s=tuple((r.first_token_s or 0.0) - (r.first_scheduled_s or 0.0) for r in second),
        cached_tokens=tuple(one.num_cached_tokens for one in second),
        disk_bytes=disk_bytes,
        order=tuple(order),
    )


def returning(history: int, pool_tokens: int, question: int = 8) -> Traffic:
    """A session, two others that each need the whole pool, and the session again: for a run
    with one place in the batch. The first of the others evicts the session's pages from the
    device; the second evicts the first one's pages, which push the session's out of a host no
    larger than the device."""
    own = random_tokens(history, "history")
    others = [random_tokens(pool_tokens - 2, f"somebody else {n}") for n in range(2)]
    prompts = [own, *others, own + random_tokens(question, "question")]
    one = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    return at_once(prompts, [one] * 4, name=f"a session of {history} tokens returns")


def resume_s(trace: RunTrace) -> float | None:
    """Seconds from the first step to the first token of the request that was admitted last."""
    last = max(trace.requests, key=lambda one: one.metrics.first_scheduled_s or 0.0).metrics
    if last.first_token_s is None or last.first_scheduled_s is None:
        return None
    return last.first_token_s - last.first_scheduled_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench sessions`."""
    parser.add_argument("--model", default="zoo/base", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--sessions", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--history", type=int, default=33, help="tokens (default: %(default)s)")
    parser.add_argument("--device-sessions", type=int, default=30,
                        help="how many fit on the device (default: %(default)s)")  # fmt: skip
    parser.add_argument("--host-sessions", type=int, default=300,
                        help="how many fit into the host tier (default: %(default)s)")  # fmt: skip
    parser.add_argument("--disk-path", metavar="DIRECTORY", help="default: the system's own")
    parser.add_argument("--lengths", type=int, nargs="*", default=[16, 32, 64, 128, 256, 512, 1024],
                        metavar="TOKENS", help="histories to resume one by one")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, help="of each length (default: 5)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    # Defaults of fields that the report's frame reads.
    parser.set_defaults(dtype="float32", device="cpu", seed=0)


def run(args: argparse.Namespace) -> int:
    """Measure and report: tables on stderr, a line of JSON on stdout. Returns 1 if a session's
    tokens depend on where its history was."""
    config = IDLE.with_values(
        {"kernels.num_threads": args.threads, "memory.disk_path": args.disk_path}
    )
    loaded = load_model(args.model, config, progress=not args.no_progress)
    block = loaded.config.block_bytes
    size = config.memory.block_size
    blocks = -(-(args.history + 16) // size)
    tiers = {
        "memory.kv_bytes": (args.device_sessions + 1) * blocks * block,
        "scheduling.max_model_len": args.history + 16,
    }
    host = {"memory.host_bytes": args.host_sessions * blocks * block}
    disk = {"memory.disk_bytes": 2 * args.sessions * blocks * block}
    sides = {
        "device": config.with_values(tiers),
        "device, host": config.with_values(tiers | host),
        "device, host, disk": config.with_values(tiers | host | disk),
    }
    runs = {}
    for name, each in sides.items():
        model = load_model(args.model, each, progress=False)
        run_sessions(model, 2, args.history)  # warm-up
        runs[name] = run_sessions(model, args.sessions, args.history)
    race = Race(args, find_model(args.model), args.model, False)
    result = frame(
        race, "sessions", num_sessions=args.sessions, history=args.history, block_bytes=block
    )
    result |= _figures(runs)
    result["by_length"] = _by_length(args, config)
    print(json.dumps(result))
    return int(not result["same_tokens"])


def _figures(runs: Mapping[str, SessionsRun]) -> dict[str, Any]:
    base = next(iter(runs.values()))
    sides, rows = [], []
    for name, one in runs.items():
        waited = distribution(one.resume_s)
        assert waited is not None, "there is a session"
        totals = one.trace.totals
        sides.append(
            {
                "name": name,
                "held": one.held,
                "where": "".join(tier[0] if tier != "disk" else "s" for tier in one.where),
                "resume_p50_s": waited.p50,
                "resume_p99_s": waited.p99,
                "sessions_found": sum(1 for tokens in one.cached_tokens if tokens),
                "cached_tokens": sum(one.cached_tokens),
                "found_tokens": one.cached_tokens,
                "loaded_tokens": totals.loaded_tokens,
                "computed_tokens": totals.prefill_tokens + totals.decode_tokens,
                "disk_bytes": one.disk_bytes,
                "notes": [note for note in one.trace.header.notes if "disk" in note],
            }
        )
        rows.append(
            [
                name,
                *(f"{one.held[tier]}" for tier in TIERS),
                f"{waited.p50 * 1e3:.2f}",
                f"{waited.p99 * 1e3:.2f}",
                f"{totals.loaded_tokens}",
                f"{totals.prefill_tokens}",
                "yes" if one.token_ids == base.token_ids else "no",
            ]
        )
    head = ["side", *TIERS, "resume p50 ms", "p99", "loaded", "prefill", "same tokens"]
    print_table(head, rows)
    same = len({one.token_ids for one in runs.values()}) == 1
    return {"sides": sides, "order": base.order, "same_tokens": same}


def _by_length(args: argparse.Namespace, config: EngineConfig) -> list[dict[str, Any]]:
    """Time to first token of one returning session: recomputed, loaded from the host,
    loaded from disk."""
    found, rows = [], []
    for length in args.lengths:
        size = config.memory.block_size
        blocks = -(-(length + 16) // size)
        pool = blocks * size
        block = load_model(args.model, config, progress=False).config.block_bytes
        shared = {
            "memory.kv_bytes": blocks * block,
            "memory.host_bytes": 3 * blocks * block,
            "scheduling.max_model_len": pool,
            "scheduling.max_num_batched_tokens": 2048,
        }
        sides = {
            "recompute": shared | {"memory.resume": "recompute"},
            "host": shared,
            # See returning().
            "disk": shared
            | {"memory.host_bytes": blocks * block, "memory.disk_bytes": 8 * blocks * block},
        }
        models = {
            name: load_model(args.model, config.with_values(values), progress=False)
            for name, values in sides.items()
        }
        traffic = returning(length, pool)

        def measured(name: str, models: Any = models, traffic: Traffic = traffic) -> float:
            engine = build_engine(models[name])
            drive(engine, traffic)
            engine.close()
            return resume_s(engine.trace) or 0.0

        seconds = interleave(
            {name: lambda name=name: measured(name) for name in models},  # type: ignore[misc]
            args.repeats,
            warmup={name: lambda name=name: measured(name) for name in models},  # type: ignore[misc]
            progress=not args.no_progress,
        )
        entry: dict[str, Any] = {"history": length}
        for name, values in seconds.items():
            entry[name] = vars(Spread.of(values))
            entry[f"{name}_over_recompute"] = vars(pairwise_ratio(values, seconds["recompute"]))
        found.append(entry)
        rows.append([f"{length}", *(f"{median(values) * 1e3:.2f}" for values in seconds.values())])
    if rows:
        print_table(["history", "recompute ms", "host ms", "disk ms"], rows)
    return found
