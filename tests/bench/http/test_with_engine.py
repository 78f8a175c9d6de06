"""The client and the engine's metrics count the same, from both ends of a connection."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
from bench.http.fake_server import Answer, Asked, Plan, serving

from minserve import LLM, AsyncLLM, EngineConfig, QueueFullError, SamplingParams
from minserve.bench.http import RequestRecord, play
from minserve.bench.workloads import conversations, length_draws
from minserve.bench.workloads.traffic import Traffic, traffic
from minserve.server.metrics import EngineMetrics

CONFIG = EngineConfig(dtype="float32", device="cpu").with_values({"scheduling.max_num_seqs": 2})


def serve(llm: AsyncLLM) -> Plan:
    """The least of a server over an engine."""

    async def plan(asked: Asked, answer: Answer) -> None:
        body = asked.body
        params = SamplingParams(
            max_tokens=body["max_tokens"], min_tokens=body["min_tokens"],
            ignore_eos=body["ignore_eos"], temperature=body["temperature"],
        )  # fmt: skip
        number, is_open = 0, False
        try:
            async for chunk in llm.add(body["prompt"], params):
                if not is_open:
                    await answer.start()
                    is_open = True
                number += len(chunk.token_ids)
                choice = {"text": chunk.text, "token_ids": list(chunk.token_ids)}
                await answer.event({"choices": [choice | {"finish_reason": chunk.finish_reason}]})
        except QueueFullError as error:
            await answer.whole(429, {"error": {"message": str(error)}}, retry_after="1")
            return
        await answer.usage(len(body["prompt"]), number)
        await answer.end()

    return plan


def requests(count: int = 12) -> Traffic:
    lengths = length_draws.uniform(1, 9)
    return traffic(conversations.independent(lengths, lengths), count, 1e4, seed=5)


def counted(metrics: EngineMetrics, name: str) -> float:
    found = re.search(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", metrics.render().decode(), re.M)
    assert found is not None, name
    return float(found[1])


@pytest.fixture
def llm() -> Iterator[AsyncLLM]:
    with AsyncLLM("zoo/base", CONFIG) as model:
        yield model


def test_tokens_are_counted_alike_at_both_ends_and_are_those_of_an_offline_run(
    llm: AsyncLLM,
) -> None:
    metrics = EngineMetrics(llm)
    played = requests()
    with serving(serve(llm)) as server:
        result = play(server.url, played, progress=False)
    report = result.report()
    assert report["completed"] == 12 and result.is_complete
    assert report["total_output_tokens"] == counted(metrics, "vllm:generation_tokens_total")
    assert report["total_input_tokens"] == counted(metrics, "vllm:prompt_tokens_total")
    assert counted(metrics, "vllm:time_to_first_token_seconds_count") == 12
    deliveries = sum(len(record.deliveries_s) for record in result.records)
    gaps = counted(metrics, "vllm:inter_token_latency_seconds_count")
    assert deliveries <= gaps + 12, "an event may have the tokens of several steps, never of none"
    # What the engine measures is a part of what the client waits for.
    waits_s = sum(record.metrics.ttft_s or math.nan for record in result.records)
    assert counted(metrics, "vllm:time_to_first_token_seconds_sum") < waits_s
    with LLM("zoo/base", CONFIG) as offline:
        prompts = [list(request.prompt_token_ids) for request in played.requests]
        outputs = offline.generate(prompts, [request.params for request in played.requests])
    assert [record.text for record in result.records] == [output.text for output in outputs]
    assert [r.num_output_tokens for r in result.records] == [len(o.token_ids) for o in outputs]


def test_what_a_full_queue_refuses_is_refused_at_both_ends() -> None:
    with AsyncLLM("zoo/base", CONFIG.with_values({"scheduling.max_queued_requests": 1})) as llm:
        metrics = EngineMetrics(llm)
        endless = SamplingParams(max_tokens=1500, ignore_eos=True)
        held = [llm.add("def f():", endless) for _ in range(2)]
        readers = [iter(stream) for stream in held]
        before = [next(reader) for reader in readers]  # both places are taken
        records: list[RequestRecord] = []

        def ended(record: RequestRecord) -> None:
            records.append(record)
            if len(records) == 11:
                for stream in held:
                    stream.abort()

        with serving(serve(llm)) as server:
            result = play(
                server.url, requests(), rate_per_s=math.inf, progress=False, on_record=ended
            )
        refused = result.of("refused")
        assert len(refused) == 11 and len(result.of("completed")) == 1
        assert {record.retry_after_s for record in refused} == {1.0}
        assert counted(metrics, "minserve:request_refused_total") == 11
        assert counted(metrics, "minserve:request_arrivals_total") == 2 + 12
        chunks = [*before, *(chunk for reader in readers for chunk in reader)]
        tokens = result.report()["total_output_tokens"] + sum(len(c.token_ids) for c in chunks)
        assert tokens == counted(metrics, "vllm:generation_tokens_total")


def test_a_closed_loop_of_few_clients_is_never_refused() -> None:
    with AsyncLLM("zoo/base", CONFIG.with_values({"scheduling.max_queued_requests": 1})) as llm:
        with serving(serve(llm)) as server:
            result = play(
                server.url, requests(), rate_per_s=math.inf, max_concurrency=2, progress=False
            )
        assert len(result.of("completed")) == 12
