"""Thousands of requests over HTTP, a fifth of whose clients leave: the server does not grow."""

from __future__ import annotations

import asyncio
import random
import resource
from pathlib import Path

import httpx2
import pytest
from server.command import served
from server.conftest import MODEL
from server.test_leaving import PROMPTS, read, running_requests, wait_for
from server.test_limits import get

CLIENTS = 24
GROWTH_BYTES = 24 << 20


def rss_bytes(pid):
    """Resident memory of a process now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def load(url, count, seed):
    """Send `count` requests, half of them streamed; how many were answered and left."""
    ends = {"answered": 0, "left": 0}

    async def client(number):
        draw = random.Random(f"{seed} {number}")
        async with httpx2.AsyncClient(timeout=60) as http:
            for turn in range(count // CLIENTS):
                body = {"model": MODEL, "prompt": draw.choice(PROMPTS) * draw.randint(1, 8),
                        "max_tokens": draw.choice([1, 4, 9]), "ignore_eos": True, "logprobs": 2,
                        "seed": turn, "temperature": 0.9}  # fmt: skip
                if draw.random() < 0.2:
                    await read(http, url, body | {"max_tokens": 100}, leave_after=1)
                    ends["left"] += 1
                elif draw.random() < 0.5:
                    assert isinstance(await read(http, url, body), str)
                    ends["answered"] += 1
                else:
                    answer = await http.post(f"{url}/v1/completions", json=body)
                    assert answer.json()["usage"]["completion_tokens"] == body["max_tokens"]
                    ends["answered"] += 1

    async def all_clients():
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))

    asyncio.run(all_clients())
    return ends


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_flat_over_thousands_of_requests(request):
    rounds = 10 if request.config.getoption("--full") else 2
    with served("--max-num-seqs", "16", "--max-model-len", "512") as (process, url):
        used = []
        for number in range(rounds):
            ends = load(url, 500, number)
            assert ends["left"] > 40 and ends["answered"] > 300
            wait_for(lambda: running_requests(url) == 0)
            used.append(rss_bytes(process.pid))
        assert get(url, "/health")[0] == 200
        # Caches and the allocator settle in the first rounds.
        settled = used[min(3, rounds // 2 - 1)]
        assert used[-1] - settled < GROWTH_BYTES, [each >> 20 for each in used]
