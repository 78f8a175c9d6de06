"""Hostile requests beside an ordinary one whose tokens never change.

Each hostile request is drawn from nasty values of every field. It is refused with a sentence, or
served to its end; nothing else may happen. The device's tokens come from the real sampler.
"""

from __future__ import annotations

import gc
import math
import os
import random
import time
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.fakes import VOCAB, EchoRunner, make_engine, next_token, oracle

from minserve.batch import ForwardBatch
from minserve.config import ConfigError, EngineConfig
from minserve.engine import Engine
from minserve.execution.runner import StepResult
from minserve.inputs.prompts import check_arrival, check_priority, check_request_id, parse_prompts
from minserve.request import InvalidRequestError, Request, SamplingParams
from minserve.sampling import Sampler, to_token_logprobs

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
BYSTANDER = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)

ANY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1.0, 0.5, 2.5, -0.0, math.nan, math.inf, -math.inf, 1e300,
    5e-324, 10**400, -(10**400), 2**31, 2**63, -(2**63), "", "a", "5", "\ud800", b"a", [], [1],
    [1.5], ["a"], [None], {}, {5: 1.0}, {5: None}, {"5": 1}, (1, 2), {1, 2}, range(3),
    range(10**20), np.int64(3), np.float32(0.5), np.array([1, 2]), np.array([0.5]),
    torch.tensor(2), torch.tensor([1]), Fraction(1, 2), Decimal(2), 1j, object(), iter([1]),
]  # fmt: skip
SPECIAL: dict[str, list[Any]] = {
    "max_tokens": [1, 3, 8, None],
    "min_tokens": [0, 2, 5],
    "temperature": [0.0, 1e-300, 1e-30, 0.7, 1e6],
    "top_k": [1, 5, VOCAB, VOCAB + 1, 2**31 - 1],
    "top_p": [1e-300, 0.3, 0.999999, 1.0],
    "min_p": [1e-300, 0.5, 1.0],
    "repetition_penalty": [1e-6, 0.5, 1.7, 1e6],
    "presence_penalty": [-2.0, 2.0],
    "frequency_penalty": [-2.0, 2.0],
    "logit_bias": [
        {VOCAB: 1.0}, {VOCAB - 1: 1e30}, {1: -math.inf}, {1: 1e30, 2: -1e30},
        dict.fromkeys(range(VOCAB), -math.inf), dict.fromkeys(range(1, VOCAB), -math.inf),
    ],
    "stop_token_ids": [[1], range(VOCAB), range(VOCAB + 1)],
    "n": [1, 2, 5, 10**6],
    "seed": [0, -1, 2**63 - 1],
    "logprobs": [0, 1, 20, VOCAB, VOCAB + 1, -1],
    "prompt_logprobs": [0, 1, 20, VOCAB, VOCAB + 1, -1],
    "cache_salt": ["a", "é", "x" * 2000],
    "allowed_token_ids": [[0], [1, 2, 3], range(VOCAB), [VOCAB], [96]],
    "bad_words": [["a"]],
    "stop": ["x", ["x", "y"]],
}  # fmt: skip
FIELDS = [*SPECIAL, "include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "detokenize"]
PROMPTS: list[Any] = [
    [1, 2, 3], [0], [VOCAB - 1] * 50, [VOCAB], [-1], [1] * 127, [1] * 128, [True], [1.0], [2**70],
    ["a"], [[1]], {"prompt_token_ids": [5]}, {"prompt": "x"}, np.arange(5), torch.arange(3),
]  # fmt: skip


class SampledRunner(EchoRunner):
    """The tokens of `EchoRunner` as logits, which the real sampler draws from: an unedited greedy
    row gets the token that `oracle` foretells."""

    def _pass(self, batch: ForwardBatch, handle: Any) -> None:
        super()._pass(batch, handle)
        logits = torch.zeros(len(handle.token_ids), VOCAB, dtype=torch.bfloat16)
        logits[torch.arange(len(logits)), torch.tensor(handle.token_ids).long()] = 4.0
        sampled = Sampler().sample(logits, batch.sampling)
        handle.token_ids = sampled.token_ids.tolist()
        handle.logprobs = {}
        # What waits on the device for the next pass is some token, also where none was drawn.
        self._drawn = [max(token, 0) for token in handle.token_ids]
        if sampled.logprobs is not None:
            rows, counts = batch.sampling.logprob_rows.tolist(), batch.sampling.logprob_counts
            tokens = [handle.token_ids[row] for row in rows]
            records = to_token_logprobs(sampled.logprobs, tokens, counts)
            handle.logprobs = dict(zip(rows, records, strict=True))

    def collect(self, handle: Any) -> StepResult:
        return super().collect(handle)._replace(logprobs=handle.logprobs)


def hostile(rng: random.Random) -> dict[str, Any]:
    """A few fields with nasty values; short unless it says otherwise, so that it ends."""
    values: dict[str, Any] = {"max_tokens": 3}
    for field in rng.sample(FIELDS, rng.randint(1, 4)):
        pool = SPECIAL.get(field, [True, False])
        values[field] = rng.choice(pool if rng.random() < 0.85 else ANY)
    return values


def sampled_engine(config: EngineConfig) -> Engine:
    engine, runner, _ = make_engine(config, num_blocks=64)
    runner.__class__ = SampledRunner
    return engine


def attempts(rng: random.Random, count: int, engine: Engine) -> Iterator[list[Request] | None]:
    """Construct and add hostile requests; None for each that is refused."""
    for number in range(count):
        prompt = rng.choice(PROMPTS if rng.random() < 0.2 else [[1, 2, 3]])
        priority = rng.choice(ANY if rng.random() < 0.1 else [0])
        arrival = rng.choice(ANY if rng.random() < 0.1 else [None])
        name = rng.choice(ANY if rng.random() < 0.05 else [f"hostile-{number}"])
        try:
            params = SamplingParams(**hostile(rng))
            [parsed] = parse_prompts([prompt], engine.config.max_prompt_chars)
            yield engine.add(
                check_request_id(name),
                parsed.token_ids or [],
                params,
                priority=check_priority(priority),
                arrival_s=check_arrival(arrival),
            )
        except (InvalidRequestError, ConfigError) as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            yield None


SECONDS = 5.0
"""Computing time for one hostile request and two steps."""
GROWTH_BYTES = 48 << 20


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize(
    "count", [200, pytest.param(1000, marks=[pytest.mark.full])], ids=["some", "many"]
)
def test_a_request_gets_its_tokens_whatever_hostile_requests_run_beside_it(count, async_scheduling):
    rng = random.Random(count + async_scheduling)
    engine = sampled_engine(
        EngineConfig().with_values(
            {
                "scheduling.order": "priority",
                "scheduling.async_scheduling": async_scheduling,
                "memory.prefix_cache": "hash",
            }
        )
    )
    expected = oracle(PROMPT, 100, ignore_eos=True)
    bystander, served, num_refused, num_rounds = None, [], 0, 0
    memory, start = resident_bytes(), time.thread_time()
    for requests in attempts(rng, count, engine):
        assert time.thread_time() - start < SECONDS
        start = time.thread_time()
        if bystander is None or bystander.finished:
            if bystander is not None:
                assert bystander.output_token_ids == expected
            [bystander] = engine.add(f"bystander-{num_rounds}", PROMPT, BYSTANDER)
            num_rounds += 1
        num_refused += requests is None
        served += requests or []
        for _ in range(2):
            if engine.has_work:
                engine.step()
    while engine.has_work:
        engine.step()
    assert bystander is not None and bystander.output_token_ids == expected
    assert all(request.finished for request in served)
    assert len(served) > count / 5 and num_refused > count / 5, "too few of one kind"
    engine.memory.check()
    assert engine.memory.pool.num_owned == 0
    for request in served:
        params, tokens = request.params, request.output_token_ids
        if request.finish_reason == "error":
            assert request.error
            assert "not numbers" in request.error or "no token was left" in request.error
            continue
        if params.allowed_token_ids is not None:
            assert set(tokens) <= set(params.allowed_token_ids)
        banned = {token for token, bias in params.logit_bias.items() if bias == -math.inf}
        assert not banned & set(tokens)
        if params.logprobs is not None:
            assert [len(entry.top) for entry in request.logprobs] == [params.logprobs] * len(tokens)
    assert not engine.live_requests() and not engine._requests.texts
    served.clear()
    engine.take_updates()
    grown = resident_bytes() - memory
    assert grown < GROWTH_BYTES, f"{grown:,} bytes more resident after {count} requests"


def resident_bytes() -> int:
    gc.collect()
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def test_the_runner_foretells_what_an_unedited_greedy_row_gets():
    engine = sampled_engine(EngineConfig())
    [request] = engine.add("a", PROMPT, BYSTANDER)
    engine.step()
    assert request.output_token_ids == [next_token(PROMPT)]
