"""An error at any call of a step, and Ctrl-C at any line of it: the requests it belongs to end, the
others get exactly their tokens, and the next requests find an engine as good as new."""

from __future__ import annotations

import random

import pytest
from engine.fakes import TOKEN_BYTES, make_engine, oracle
from faults.inject import Injected, Injector, Panic

from minserve.config import EngineConfig
from minserve.engine import Engine
from minserve.request import Request, SamplingParams

SHARED = [(5 * j) % 90 + 1 for j in range(12)]
PROMPTS = [SHARED + [(7 * i + 3 * j) % 90 + 1 for j in range(3 + 5 * (i % 3))] for i in range(5)]
ERRORS = {"error": Injected, "panic": Panic, "interrupt": KeyboardInterrupt}


def config(rng: random.Random, folder: str) -> EngineConfig:
    """A small pool, so that requests are preempted, swapped, evicted and loaded."""
    block_size = rng.choice([2, 4])
    prefix = rng.choice(["off", "hash", "radix"])
    swaps = rng.random() < 0.5
    order = rng.choice(["fcfs", "sjf", "priority", "mlfq"])
    policy = "static" if order in ("fcfs", "sjf") else "continuous"
    return EngineConfig().with_values(
        {
            "memory.block_size": block_size,
            "memory.prefix_cache": prefix,
            "memory.host_bytes": 12 * block_size * TOKEN_BYTES if swaps else 0,
            "memory.disk_bytes": 1 << 16 if swaps and prefix != "off" else 0,
            "memory.disk_path": folder,
            "memory.resume": "load",
            "memory.watermark": 0.0,
            "memory.copy_on_write": rng.random() < 0.7,
            "scheduling.preemption": "swap" if swaps else "recompute",
            "scheduling.order": order,
            "scheduling.policy": rng.choice(["continuous", policy]),
            "scheduling.prefill": rng.choice(["mixed", "decode_first", "prefill_first"]),
            "scheduling.max_num_seqs": 3,
            "scheduling.max_num_batched_tokens": rng.choice([6, 32]),
            "scheduling.async_scheduling": rng.random() < 0.5,
        }
    )


def submit(engine: Engine, rng: random.Random, tag: str) -> list[Request]:
    requests: list[Request] = []
    for index, prompt in enumerate(PROMPTS):
        params = SamplingParams(
            max_tokens=rng.randrange(1, 9), temperature=0.0, n=rng.choice([1, 1, 3])
        )
        requests += engine.add(f"{tag}{index}", prompt, params, priority=-index % 3)
    return requests


def expect(requests: list[Request], ends: tuple[str, ...] = ("stop", "length")) -> None:
    for request in requests:
        assert request.finish_reason in ends, (request.request_id, request.error)
        tokens = oracle(request.prompt_token_ids, request.max_len - request.num_prompt_tokens)
        if request.finish_reason in ("error", "abort"):
            tokens = tokens[: request.num_output_tokens]
        assert request.output_token_ids == tokens


def drain(engine: Engine) -> int:
    """Step to the end, whatever steps raise; how many raised."""
    failures = 0
    for _ in range(2000):
        if not engine.has_work:
            return failures
        try:
            engine.step()
        except BaseException:
            failures += 1
    raise AssertionError("the engine does not come to an end")


def expect_clean(engine: Engine) -> None:
    """Nothing is left of any request: pages, slots, queues, names and texts."""
    engine.memory.check()
    engine._scheduler.check()
    assert engine.memory.pool.num_owned == 0
    assert engine.memory.host is None or engine.memory.host.num_owned == 0
    assert not engine._requests and not engine._requests.texts and not engine._in_flight
    assert not engine.memory.requests() and not list(engine._scheduler.requests())


def one_fault(seed: int, kind: str, lines: bool, tmp_path) -> int:
    """Run a drawn engine and workload with one fault at a drawn event; how many steps it took."""
    rng = random.Random(f"{seed} {kind} {lines}")
    engine, _, _ = make_engine(config(rng, str(tmp_path)), num_blocks=14, lazy=rng.random() < 0.5)
    requests = submit(engine, rng, "before")
    late = rng.choice([0, 300, 1500, 6000])
    injector = Injector(ERRORS[kind], rng.randrange(late + (900 if lines else 300)), lines=lines)
    try:
        with injector:
            for _ in range(400):
                if engine.has_work and not injector.fired:
                    engine.step()
            engine.abort(requests[-1].request_id)
    except BaseException as error:
        assert isinstance(error, ERRORS[kind]), injector.fired
    drain(engine)
    try:
        expect(requests, ("stop", "length", "error", "abort"))
        ended = [r for r in requests if r.finish_reason == "error"]
        assert all(r.error for r in ended)
        if kind == "interrupt" or not injector.fired:
            assert all(isinstance(r.cause, BaseException | None) for r in ended)
        expect_clean(engine)
        after = submit(engine, rng, "before")[:3]
        engine_failures = drain(engine)
        assert engine_failures == 0
        expect(after)
        expect_clean(engine)
        names = {request.request_id for request in requests}
        records = [r for r in engine.trace.requests if r.request_id in names]
        assert len(records) >= len(requests) + 3
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, {kind} at {injector.fired}: {error}") from error
    finally:
        engine.close()
    return engine._recorder.num_steps


@pytest.mark.parametrize("lines", [False, True], ids=["calls", "lines"])
@pytest.mark.parametrize("kind", list(ERRORS))
def test_a_fault_anywhere_in_a_step_leaves_an_engine_as_good_as_new(kind, lines, tmp_path):
    steps = sum(one_fault(seed, kind, lines, tmp_path) for seed in range(40))
    assert steps > 400


@pytest.mark.full
@pytest.mark.parametrize("lines", [False, True], ids=["calls", "lines"])
@pytest.mark.parametrize("kind", list(ERRORS))
def test_twenty_thousand_steps_with_a_fault_in_each_run(kind, lines, tmp_path):
    steps, seed = 0, 1000
    while steps < 20_000:
        steps += one_fault(seed, kind, lines, tmp_path)
        seed += 1
