"""Thousands of requests from threads and tasks, a fifth of them aborted: nothing grows."""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from minserve import LLM, AsyncLLM, EngineConfig, SamplingParams
from minserve.request import Request

CONFIG = EngineConfig(dtype="float32", device="cpu").with_values(
    {
        "memory.block_size": 4,
        "memory.kv_bytes": 1 << 20,
        "memory.prefix_cache": "radix",
        "memory.host_bytes": 1 << 19,
        "scheduling.preemption": "swap",
        "scheduling.max_num_seqs": 12,
        "scheduling.max_model_len": 128,
        "scheduling.async_scheduling": True,
        "trace.max_steps": 200,
    }
)
PROMPTS = ["def f(a, b):", "import os\n", "class Node:\n    def", "for i in range(", "x = ["]
THREADS, TASKS = 4, 4
GROWTH_BYTES = 24 << 20


def rss_bytes() -> int:
    """Resident memory now; where /proc does not tell, the peak so far."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Load:
    """What each caller does, again and again; `ends` counts how requests ended."""

    def __init__(self, llm: AsyncLLM, expected: dict[tuple[str, int], tuple[int, ...]]) -> None:
        self.llm = llm
        self.expected = expected
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []

    def draw(self, rng: random.Random) -> tuple[str, SamplingParams, str]:
        prompt, length = rng.choice(PROMPTS), rng.choice([1, 4, 9])
        how = rng.choice(["abort", "leave"]) if rng.random() < 0.2 else "read"
        return prompt, SamplingParams(max_tokens=length, temperature=0, ignore_eos=True), how

    def ended(self, prompt: str, params: SamplingParams, how: str, tokens: tuple[int, ...]) -> None:
        whole = self.expected[prompt, params.max_tokens or 0]
        right = tokens == whole if how == "read" else tokens == whole[: len(tokens)]
        if not right:
            self.wrong.append(f"{prompt!r} {how}: {tokens} instead of {whole}")
        self.ends[how] += 1

    def in_thread(self, seed: int, count: int) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            prompt, params, how = self.draw(rng)
            stream, tokens = self.llm.add(prompt, params), ()
            for chunk in stream:
                tokens += chunk.token_ids
                if how == "abort":
                    stream.abort()
                elif how == "leave":
                    break
            self.ended(prompt, params, how, tokens)

    async def in_task(self, seed: int, count: int) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            prompt, params, how = self.draw(rng)
            stream, tokens = self.llm.add(prompt, params), ()
            chunks = aiter(stream)
            async for chunk in chunks:
                tokens += chunk.token_ids
                if how == "abort":
                    stream.abort()
                elif how == "leave":
                    await chunks.aclose()
                    break
            self.ended(prompt, params, how, tokens)

    def run(self, seed: int, num_requests: int) -> None:
        count = num_requests // (THREADS + TASKS)

        async def tasks() -> None:
            await asyncio.gather(*(self.in_task(seed + 100 + i, count) for i in range(TASKS)))

        callers = [
            threading.Thread(target=self.in_thread, args=(seed + i, count)) for i in range(THREADS)
        ]
        for caller in callers:
            caller.start()
        asyncio.run(tasks())
        for caller in callers:
            caller.join(300)
        assert not any(caller.is_alive() for caller in callers)


def soak(num_requests: int) -> None:
    lengths = [SamplingParams(max_tokens=n, temperature=0, ignore_eos=True) for n in (1, 4, 9)]
    with LLM("zoo/draft", CONFIG) as oracle:
        expected = {
            (prompt, params.max_tokens or 0): oracle.generate(prompt, params)[0].token_ids
            for prompt in PROMPTS
            for params in lengths
        }
    with AsyncLLM("zoo/draft", CONFIG) as llm:
        load = Load(llm, expected)
        load.run(0, num_requests // 4)
        gc.collect()
        before, threads = rss_bytes(), threading.active_count()
        for part in range(3):
            load.run(1000 * (part + 1), num_requests // 4)
        gc.collect()
        grown = rss_bytes() - before
        assert not load.wrong, load.wrong[:5]
        aborted = load.ends["abort"] + load.ends["leave"]
        assert aborted > num_requests * 0.1 and load.ends.total() >= num_requests - 64
        llm._thread.ask(lambda: _expect_clean(llm), 30)
        assert threading.active_count() <= threads
        left = sum(type(one) is Request for one in gc.get_objects())
        assert left <= 40, f"{left} requests are still in memory"
        assert grown < GROWTH_BYTES, f"{grown >> 20} MiB more than after the first quarter"


def _expect_clean(llm: AsyncLLM) -> None:
    engine = llm._engine
    engine.memory.check()
    engine._scheduler.check()
    assert engine.memory.pool.num_owned == 0 and not engine._requests.texts and not engine._requests
    assert not llm._thread._inbox.mailboxes and not llm._thread._delivery.cursors


def test_a_few_hundred_requests_with_aborts_leave_nothing_behind():
    soak(400)


@pytest.mark.full
def test_five_thousand_requests_with_aborts_leave_nothing_behind():
    soak(5000)
