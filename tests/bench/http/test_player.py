"""Traffic against a server over a real connection: what every kind of answer is recorded as."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest
from bench.http.fake_server import Answer, Asked, Plan, as_asked, serving

from minserve.bench.http import PlayResult, play
from minserve.bench.http.client import PlayError
from minserve.bench.workloads.traffic import Traffic, at_once, fixed_length, poisson


def traffic(*lengths: int, rate: float | None = None) -> Traffic:
    prompts = [tuple(range(2, 5 + n)) for n in range(len(lengths))]
    params = [fixed_length(length) for length in lengths]
    return poisson(prompts, params, rate) if rate else at_once(prompts, params)


def played(plan: Plan, *lengths: int, **options: object) -> PlayResult:
    with serving(plan) as server:
        return play(server.url, traffic(*lengths), progress=False, **options)  # type: ignore[arg-type]


def test_every_request_arrives_as_planned_and_its_tokens_are_counted() -> None:
    with serving() as server:
        result = play(server.url, traffic(3, 1, 5, rate=1000.0), progress=False)
    assert [record.num_output_tokens for record in result.records] == [3, 1, 5]
    assert [record.num_prompt_tokens for record in result.records] == [3, 4, 5]
    assert [record.text for record in result.records] == [" 0 1 2", " 0", " 0 1 2 3 4"]
    assert {record.status for record in result.records} == {"completed"} and result.is_complete
    bodies = [asked.body for asked in sorted(server.asked, key=lambda a: len(a.body["prompt"]))]
    assert [body["prompt"] for body in bodies] == [[2, 3, 4], [2, 3, 4, 5], [2, 3, 4, 5, 6]]
    assert {body["model"] for body in bodies} == {"fake"} == {result.model}
    for record in result.records:
        assert record.sent_s is not None and record.ended_s is not None
        times = [record.scheduled_s, record.sent_s, *record.deliveries_s, record.ended_s]
        assert times == sorted(times) and record.first_token_s == record.deliveries_s[0]
        assert record.finish_reason == "length" and not record.is_estimated
    run = result.run()
    assert run.num_requests == 3 and run.num_output_tokens == 9 and run.num_input_tokens == 12
    assert len(run.itl_s) == 2 + 0 + 4


def test_bytes_may_be_cut_anywhere() -> None:
    async def crumbs(asked: Asked, answer: Answer) -> None:
        await answer.start()
        text = 'data: {"choices": [{"text": "é€"}]}\r\n\r\ndata: {"choices": [{"text": "!", '
        text += '"finish_reason": "stop"}]}\r\n\r\ndata: [DONE]\r\n\r\n'
        for byte in text.encode():
            await answer.raw(bytes([byte]))
            await asyncio.sleep(0)
        await answer.raw(b"", more=False)

    (record,) = played(crumbs, 2).records
    assert record.text == "é€!" and record.status == "completed"
    assert record.num_output_tokens == 2 and record.is_estimated


def test_a_chunk_of_many_tokens_counts_as_many_but_is_one_delivery() -> None:
    async def chunks(asked: Asked, answer: Answer) -> None:
        await answer.start()
        await answer.token("one two three")
        await answer.token(" four", "length")
        await answer.usage(3, 4)
        await answer.end()

    result = played(chunks, 4)
    (record,) = result.records
    assert record.num_output_tokens == 4 and len(record.deliveries_s) == 2
    assert len(result.run().itl_s) == 1
    metrics = record.metrics
    assert metrics.e2e_s is not None and metrics.ttft_s is not None
    assert metrics.tpot_s == pytest.approx((metrics.e2e_s - metrics.ttft_s) / 3)


def test_usage_in_every_chunk_is_not_added_up() -> None:
    async def told(asked: Asked, answer: Answer) -> None:
        await answer.start()
        for number in range(1, 4):
            usage = {"prompt_tokens": 3, "completion_tokens": number}
            choice = {"text": "x", "finish_reason": "length" if number == 3 else None}
            await answer.event({"choices": [choice], "usage": usage})
        await answer.end()

    assert played(told, 3).records[0].num_output_tokens == 3


def test_a_request_ends_with_its_last_token_not_with_its_connection() -> None:
    async def lingers(asked: Asked, answer: Answer) -> None:
        await answer.start()
        await answer.token("all", "length")
        await asyncio.sleep(0.05)
        await answer.usage(3, 1)
        await answer.end()

    (record,) = played(lingers, 1).records
    assert record.ended_s == record.deliveries_s[-1] and record.status == "completed"


def test_nothing_counts_after_the_end() -> None:
    async def chatty(asked: Asked, answer: Answer) -> None:
        await answer.start()
        await answer.token("all", "length")
        await answer.event("[DONE]")
        await answer.token(" and more")
        await answer.event({"error": {"message": "too late"}})
        await answer.end()

    (record,) = played(chatty, 1).records
    assert record.status == "completed" and record.text == "all"
    assert len(record.deliveries_s) == 1


def test_an_answer_that_was_not_streamed_is_one_delivery() -> None:
    async def whole(asked: Asked, answer: Answer) -> None:
        choice = {"text": "all of it", "finish_reason": "length"}
        usage = {"prompt_tokens": 3, "completion_tokens": 6}
        await answer.whole(200, {"choices": [choice], "usage": usage})

    (record,) = played(whole, 6).records
    assert record.status == "completed" and record.num_output_tokens == 6
    assert len(record.deliveries_s) == 1 and record.text == "all of it"


def test_tokens_without_text_are_tokens() -> None:
    async def silent(asked: Asked, answer: Answer) -> None:
        await answer.start()
        await answer.token("", "length")
        await answer.usage(3, 2)
        await answer.end()

    (record,) = played(silent, 2).records
    assert record.status == "completed" and record.num_output_tokens == 2
    assert record.metrics.ttft_s is not None


def test_refused_failed_and_broken_answers_are_counted_apart() -> None:
    async def mixed(asked: Asked, answer: Answer) -> None:
        kind = asked.body["max_tokens"]
        if kind == 1:
            error = {"error": {"message": "the queue is full"}}
            await answer.whole(429, error, retry_after="2.5")
        elif kind == 2:
            await answer.whole(500, {"error": {"message": "the engine failed"}})
        elif kind == 3:
            await answer.start()
            await answer.token("some")
            await answer.event({"error": {"message": "out of pages"}})
            await answer.end()
        elif kind == 4:
            await answer.start()
            await answer.token("some")
            await answer.raw(b"", more=False)  # neither a reason nor [DONE]
        elif kind == 5:
            await answer.start()
            await answer.token("some")
            raise ConnectionResetError  # uvicorn drops the connection
        elif kind == 6:
            await answer.start()
            await answer.raw(b"data: {nonsense\n\n")
            await answer.end()
        else:
            await as_asked(asked, answer)

    result = played(mixed, 1, 2, 3, 4, 5, 6, 7)
    statuses = [record.status for record in result.records]
    assert statuses == ["refused", *["failed"] * 5, "completed"]
    errors = [record.error for record in result.records]
    assert errors[0] == "HTTP 429: the queue is full" and result.records[0].retry_after_s == 2.5
    assert errors[1] == "HTTP 500: the engine failed" and errors[2] == "out of pages"
    assert "broke off" in errors[3] and "RemoteProtocolError" in errors[4]
    assert "not JSON" in errors[5] and errors[6] == ""
    report = result.report()
    assert (report["completed"], report["failed"], report["refused"]) == (1, 6, 1)
    assert report["total_output_tokens"] == 7 and report["complete"]
    assert any(w.startswith("5 failed, the first: HTTP 500") for w in result.warnings)


def test_a_server_that_stalls_ends_a_request_and_no_other() -> None:
    async def stalls(asked: Asked, answer: Answer) -> None:
        if asked.body["max_tokens"] > 1:
            await answer.start()
            await answer.token("so far")
            await asyncio.sleep(3600)
        await as_asked(asked, answer)

    with serving(stalls) as server:
        result = play(server.url, traffic(1, 2, 1), progress=False, timeout_s=1.0)
    assert [record.status for record in result.records] == ["completed", "timed_out", "completed"]
    assert "no end after 1.0 s" in result.records[1].error
    report = result.report()
    assert (report["timed_out"], report["failed"], report["completed"]) == (1, 1, 2)


def test_clients_of_a_closed_loop_wait_for_each_other() -> None:
    with serving() as server:
        result = play(
            server.url, traffic(*[3] * 12), progress=False, rate_per_s=math.inf, max_concurrency=3
        )
    assert server.most_open <= 3 and len(result.of("completed")) == 12
    assert result.rate_per_s is None and result.report()["max_concurrent_requests"] <= 3


def test_a_stop_returns_what_was_measured_and_leaves_the_server() -> None:
    async def first_only(asked: Asked, answer: Answer) -> None:
        if asked.body["max_tokens"] > 1:
            await answer.start()
            await answer.token("so far")
            await asyncio.sleep(3600)
        await as_asked(asked, answer)

    ended = threading.Event()
    with serving(first_only) as server:
        result = play(
            server.url, traffic(1, 2, 2), progress=False, should_stop=ended.is_set,
            on_record=lambda record: ended.set(),
        )  # fmt: skip
        assert [record.status for record in result.records] == [
            "completed", "interrupted", "interrupted",
        ]  # fmt: skip
        assert not result.is_complete and result.report()["failed"] == 0
        assert [record.ended_s for record in result.records][1:] == [None, None]
    assert server.gone == 2, "the client closed its connections"


def test_it_can_be_called_where_an_event_loop_runs_and_from_threads() -> None:
    async def main(url: str) -> PlayResult:
        return play(url, traffic(2), progress=False)

    with serving() as server:
        assert asyncio.run(main(server.url)).is_complete
        results: list[PlayResult] = []
        threads = [
            threading.Thread(
                target=lambda: results.append(play(server.url, traffic(2, 2), progress=False))
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [len(result.of("completed")) for result in results] == [2, 2]


def test_warm_ups_have_other_prompts_and_are_not_measured() -> None:
    with serving() as server:
        result = play(server.url, traffic(2, 3), progress=False, num_warmups=2)
    assert [asked.body["prompt"] for asked in server.asked[:2]] == [[4, 3, 2], [5, 4, 3, 2]]
    assert len(server.asked) == 4 and len(result.records) == 2


def test_a_key_is_sent_and_kept_out_of_the_result() -> None:
    with serving() as server:
        result = play(server.url + "/v1/", traffic(1), progress=False, api_key="secret-key")
    assert server.asked[0].headers["authorization"] == "Bearer secret-key"
    assert "secret-key" not in repr(result) + repr(result.report(detailed=True))


def test_chat_is_played_with_text() -> None:
    async def chat(asked: Asked, answer: Answer) -> None:
        assert asked.path == "/v1/chat/completions"
        await answer.start()
        await answer.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        await answer.event({"choices": [{"delta": {"content": "Hello"}}]})
        await answer.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
        await answer.usage(9, 1)
        await answer.end()

    (record,) = played(chat, 1, endpoint="chat").records
    assert (record.text, record.num_prompt_tokens, record.num_output_tokens) == ("Hello", 9, 1)
    assert len(record.deliveries_s) == 1, "the role is no token"


def test_a_server_that_is_not_there_or_lists_nothing_is_said() -> None:
    with serving() as server:
        url = server.url
    with pytest.raises(PlayError, match="no server answers at"):
        play(url, traffic(1), progress=False)
    with serving(models={"data": []}) as server:
        with pytest.raises(PlayError, match="lists no model"):
            play(server.url, traffic(1), progress=False)
        assert play(server.url, traffic(1), progress=False, model="mine").is_complete
    assert server.asked[0].body["model"] == "mine"
    with pytest.raises(PlayError, match="expected http://HOST:PORT"):
        play("ftp://there", traffic(1))


def test_a_warm_up_that_fails_ends_the_run() -> None:
    async def refuses(asked: Asked, answer: Answer) -> None:
        await answer.whole(400, {"error": {"message": "ignore_eos is not known"}})

    with pytest.raises(PlayError, match="HTTP 400: ignore_eos is not known"):
        played(refuses, 1, num_warmups=1)
