"""`play`: traffic against a server, from any thread, a notebook's included.

The client runs in a thread of its own, so that it works where an event loop is already running, and
so that its CPU time can be told apart from the caller's.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from minserve.bench.http.client import Client, PlayError, ServedModel
from minserve.bench.http.loops import Loop
from minserve.bench.http.records import PlayResult, RequestRecord
from minserve.bench.http.wire import EndpointName, Options, body_of
from minserve.bench.workloads.traffic import TimedRequest, Traffic
from minserve.clock import Clock, WallClock, thread_cpu_s


@dataclass(frozen=True)
class _Run:
    """The arguments of `play`."""

    url: str
    traffic: Traffic
    model: str | None
    endpoint: EndpointName
    as_text: bool
    standard_fields: bool
    extra_body: Mapping[str, Any] | None
    rate_per_s: float | None
    max_concurrency: int | None
    num_warmups: int
    timeout_s: float | None
    api_key: str | None
    progress: bool
    should_stop: Callable[[], bool]
    on_record: Callable[[RequestRecord], None]
    clock: Clock


def play(
    url: str,
    traffic: Traffic,
    *,
    model: str | None = None,
    endpoint: EndpointName = "completions",
    as_text: bool = False,
    standard_fields: bool = False,
    extra_body: Mapping[str, Any] | None = None,
    rate_per_s: float | None = None,
    max_concurrency: int | None = None,
    num_warmups: int = 0,
    timeout_s: float | None = 600.0,
    api_key: str | None = None,
    progress: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    on_record: Callable[[RequestRecord], None] = lambda record: None,
    clock: Clock | None = None,
) -> PlayResult:
    """Play `traffic` against the server at `url`, and return what happened to each request.

    `model`: None for the first that the server lists. `rate_per_s` replaces the traffic's own rate;
    `math.inf` sends everything at the start or, with `max_concurrency`, is a closed loop of so
    many clients (`loops`). `as_text`, `standard_fields` and `extra_body` are for servers that take
    no token ids or not vLLM's fields (`wire.Options`). `num_warmups` requests are sent one after
    the other before the clock starts. `timeout_s` is the limit of one request. `on_record` is
    called in the client's thread whenever a request has ended, and `should_stop` is asked ten times
    a second.

    Ctrl-C in the main thread stops the run, and what was measured is returned; press it again to
    get the exception. Raises PlayError if there is no server, or if a warm-up fails.
    """
    stopped = threading.Event()
    run = _Run(
        url, traffic, model, endpoint, as_text, standard_fields, extra_body, rate_per_s,
        max_concurrency, num_warmups, timeout_s, api_key, progress,
        lambda: stopped.is_set() or should_stop(), on_record, clock or WallClock(),
    )  # fmt: skip
    with ThreadPoolExecutor(1, thread_name_prefix="minserve-load") as pool:
        future = pool.submit(lambda: asyncio.run(_play(run)))
        try:
            return future.result()
        except KeyboardInterrupt:
            stopped.set()
            return future.result()
        finally:
            stopped.set()


def served_model(url: str, api_key: str | None = None) -> ServedModel:
    """The first model that a server lists. Raises PlayError if there is no server, or no model."""

    async def ask() -> ServedModel:
        async with Client(url, api_key=api_key) as client:
            return await client.served_model()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(ask())).result()


async def _play(run: _Run) -> PlayResult:
    requests = run.traffic.requests
    async with Client(
        run.url, api_key=run.api_key, timeout_s=run.timeout_s, endpoint=run.endpoint
    ) as client:
        name = run.model or (await client.served_model()).name
        options = Options(name, run.endpoint, run.as_text, run.standard_fields, run.extra_body)
        await _warm_up(client, requests[: run.num_warmups], options, run.clock)
        # Before the clock starts: making bodies must not make requests late.
        bodies = [body_of(each.prompt, each.params, options) for each in requests]
        rate = run.rate_per_s or run.traffic.rate_per_s or math.inf
        with tqdm(
            total=len(requests), disable=not run.progress, leave=False, delay=2, unit="request"
        ) as bar:

            async def send(record: RequestRecord) -> None:
                record.num_prompt_tokens = len(requests[record.number].prompt_token_ids)
                await client.send(record, bodies[record.number], loop.now)

            def ended(record: RequestRecord) -> None:
                bar.update()
                run.on_record(record)

            loop = Loop(
                [each.gap for each in requests],
                send,
                run.clock,
                rate_per_s=rate,
                max_concurrency=run.max_concurrency,
                on_record=ended,
            )
            cpu_s = thread_cpu_s()
            duration_s = await loop.run(run.should_stop)
            cpu_s = thread_cpu_s() - cpu_s
    return PlayResult(
        records=tuple(loop.records),
        num_requests=len(requests),
        duration_s=duration_s,
        client_cpu_s=cpu_s,
        max_concurrency=run.max_concurrency,
        rate_per_s=None if math.isinf(rate) else rate,
        model=name,
        lags_s=tuple(loop.lags_s),
    )


async def _warm_up(
    client: Client, requests: Sequence[TimedRequest], options: Options, clock: Clock
) -> None:
    """Requests of the same lengths whose prompts are reversed, so that none of the traffic's
    prefixes is in the server's cache. Raises PlayError for one that fails."""
    for number, request in enumerate(requests):
        record = RequestRecord(number, 0.0)
        body = body_of(request.prompt[::-1], request.params, options)
        await client.send(record, body, clock.now)
        if record.status != "completed":
            raise PlayError(f"a warm-up request ended as {record.status}: {record.error}")
