"""Clients that leave, servers that stop, engines that fail: no page and no client is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
from server.command import served
from server.conftest import CONFIG, MODEL
from server.test_limits import ASK, assert_idle, get, post

from minserve import SamplingParams
from minserve.server import Server, ServerOptions

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["def f(", "import ", "class A:", "for x in ", "return ", "if a:"]


async def read(client, url, body, leave_after=None):
    """The text of a streamed completion; leaves after so many events."""
    text, events = "", 0
    async with client.stream("POST", f"{url}/v1/completions", json=body | {"stream": True}) as got:
        assert got.status_code == 200
        async for line in got.aiter_lines():
            if not line.startswith("data: "):
                continue
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                return text
            told = json.loads(data)
            if "error" in told:
                return told["error"]
            text += told["choices"][0]["text"]
            events += 1
            if leave_after is not None and events >= leave_after:
                return None
    return None


def asks(count, tokens=60):
    draw = random.Random(5)
    return [
        {"model": MODEL, "prompt": draw.choice(PROMPTS) * draw.randint(1, 4), "temperature": 0.9,
         "seed": number, "max_tokens": draw.randint(5, tokens), "ignore_eos": True}
        for number in range(count)
    ]  # fmt: skip


def expected_texts(offline, bodies):
    params = [
        SamplingParams(temperature=0.9, seed=body["seed"], max_tokens=body["max_tokens"],
                       ignore_eos=True)
        for body in bodies
    ]  # fmt: skip
    return [each.text for each in offline.generate([b["prompt"] for b in bodies], params)]


def test_many_streams_some_of_which_leave(request, server, offline):
    """Every finished stream is its offline result; those that leave give their pages back."""
    count = 300 if request.config.getoption("--full") else 60
    bodies = asks(count)
    draw = random.Random(9)
    leaves = [draw.randint(1, 4) if draw.random() < 0.2 else None for _ in bodies]

    async def all_of_them():
        limits = httpx2.Limits(max_connections=count, max_keepalive_connections=count)
        async with httpx2.AsyncClient(timeout=120, limits=limits) as client:
            return await asyncio.gather(
                *(read(client, server.url, body, leave)
                  for body, leave in zip(bodies, leaves, strict=True))
            )  # fmt: skip

    found = asyncio.run(all_of_them())
    expected = expected_texts(offline, bodies)
    finished = 0
    for text, right, leave in zip(found, expected, leaves, strict=True):
        if leave is None:
            assert text == right
            finished += 1
    assert 0.6 * count < finished < count
    assert_idle(server)


def test_a_client_that_leaves_before_its_answer_aborts_it(server):
    """Its requests ask for minutes of work; the trace counts what was aborted."""
    aborted = server.llm.trace.totals.aborted

    async def leave():
        body = ASK | {"max_tokens": 490, "ignore_eos": True, "n": 16}
        async with httpx2.AsyncClient(timeout=0.2) as client:
            with pytest.raises(httpx2.TimeoutException):
                await client.post(f"{server.url}/v1/completions", json=body)

    asyncio.run(leave())
    assert_idle(server)
    assert post(server.url, ASK)[0] == 200  # a step, whose trace tells what was aborted before
    assert server.llm.trace.totals.aborted - aborted == 16


def test_a_client_that_leaves_while_its_prompts_are_tokenized_leaves_no_request(server):
    model = server._running.service.model
    begun, go_on = threading.Event(), threading.Event()

    class Slow(type(model)):
        def encode(self, prompt, add_special_tokens=True):
            begun.set()
            go_on.wait(10)
            return super().encode(prompt, add_special_tokens)

    slow = Slow(server.llm, model.name)
    server._running.service.model = slow
    sampled = server.llm.trace.totals.sampled_tokens
    try:

        async def leave():
            body = ASK | {"max_tokens": 490, "ignore_eos": True}
            async with httpx2.AsyncClient(timeout=0.2) as client:
                with pytest.raises(httpx2.TimeoutException):
                    await client.post(f"{server.url}/v1/completions", json=body)

        asyncio.run(leave())
        assert begun.is_set()
        time.sleep(0.2)  # the server learns that the client has left
        go_on.set()
        assert_idle(server)
    finally:
        server._running.service.model = model
    assert post(server.url, ASK)[0] == 200  # its prompt is tokenized after that one
    assert_idle(server)
    # Not the 490 tokens that it asked for.
    assert server.llm.trace.totals.sampled_tokens - sampled < 100


def test_a_reader_that_takes_nothing_delays_no_other_and_is_cut_off():
    """Its answer is far larger than what sockets hold, so sending it has to wait."""
    options = ServerOptions(port=0, send_timeout_s=0.5)
    with Server(MODEL, CONFIG, options) as server:
        host, port = server.url.removeprefix("http://").split(":")
        slow = ASK | {"max_tokens": 480, "ignore_eos": True, "n": 8, "stream": True, "logprobs": 20}
        body = json.dumps(slow).encode()
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect((host, int(port)))
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            wait_for(lambda: server.llm._engine.has_requests)

            async def others():
                async with httpx2.AsyncClient(timeout=60) as client:
                    return [await read(client, server.url, each) for each in asks(5)]

            assert all(isinstance(each, str) for each in asyncio.run(others()))
            assert_idle(server)
            wait_for(lambda: not server._running.service.open)
            told = b""
            while part := raw.recv(1 << 16):
                told += part
        assert told.startswith(b"HTTP/1.1 200") and b"[DONE]" not in told


def test_draining_lets_accepted_requests_finish_and_refuses_others():
    server = Server(MODEL, CONFIG).start()
    found = []
    long = ASK | {"max_tokens": 400, "ignore_eos": True}
    thread = threading.Thread(target=lambda: found.append(post(server.url, long)))
    thread.start()
    wait_for(lambda: server.llm._engine.has_requests)
    stopper = threading.Thread(target=server.stop, args=(30.0,))
    stopper.start()
    wait_for(lambda: server._running._guard.draining)
    status, headers, told = post(server.url, ASK)
    assert status == 503 and int(headers["Retry-After"]) >= 1 and "stopping" in str(told)
    # A load balancer sends nothing more; the last requests are still measured.
    assert get(server.url, "/health")[0] == 503 and get(server.url, "/metrics")[0] == 200
    thread.join()
    stopper.join()
    assert found[0][0] == 200 and found[0][2]["usage"]["completion_tokens"] == 400


def test_what_has_not_finished_after_the_drain_is_told():
    """It asks for far more than is done before the server hears of its end."""
    server = Server(MODEL, CONFIG).start()
    found = []
    long = ASK | {"max_tokens": 500, "ignore_eos": True, "n": 100}
    thread = threading.Thread(target=lambda: found.append(post(server.url, long)))
    thread.start()
    wait_for(lambda: server.llm._engine.has_requests)
    server.stop(0.0)
    thread.join(20)
    assert not thread.is_alive() and found[0][0] == 503 and "stopping" in str(found[0][2])


class Broken(BaseException):
    """Not an Exception: as an interrupt or an exit would be."""


def test_an_engine_that_fails_tells_every_client_and_goes_on(monkeypatch):
    with Server(MODEL, CONFIG) as server:
        runner = server.llm._engine._runner

        async def all_of_them():
            async with httpx2.AsyncClient(timeout=20) as client:
                reading = [read(client, server.url, body) for body in asks(6, 60)]
                return await asyncio.wait_for(asyncio.gather(*reading), 15)

        monkeypatch.setattr(runner, "submit", failing_submit(runner.submit))
        found = asyncio.run(all_of_them())
        errors = [each for each in found if isinstance(each, dict)]
        assert errors and all("planted" in each["message"] for each in errors)
        assert post(server.url, ASK)[0] == 200 and get(server.url, "/health")[0] == 200
        assert b"planted" in get(server.url, "/health")[1]
        assert_idle(server)


def failing_submit(submit):
    """Raises a BaseException in the third pass."""
    count = [0]

    def instead(batch):
        count[0] += 1
        if count[0] == 3:
            raise Broken("planted")
        return submit(batch)

    return instead


def test_an_engine_whose_thread_has_died_is_told_to_everyone_and_takes_nothing_more(monkeypatch):
    """An exit is the one error after which the thread does not go on."""
    with Server(MODEL, CONFIG) as server:
        runner = server.llm._engine._runner

        def leave(batch):
            raise SystemExit("planted")

        monkeypatch.setattr(runner, "submit", leave)
        status, _, told = post(server.url, ASK)
        assert status == 500 and "planted" in told["error"]["message"]
        wait_for(lambda: get(server.url, "/health")[0] == 503)
        status, headers, told = post(server.url, ASK)
        assert status == 503 and int(headers["Retry-After"]) >= 1
        assert "the engine has stopped" in told["error"]["message"]


def test_a_line_of_the_log_has_the_request_its_user_and_its_tokens(server, caplog):
    asked = ASK | {"user": "ann", "n": 2, "ignore_eos": True}
    with caplog.at_level(logging.INFO, logger="minserve.server"):
        for more in ({}, {"stream": True}):
            url = f"{server.url}/v1/completions"
            answer = httpx2.post(url, json=asked | more, headers={"X-Request-Id": "abc"})
            assert answer.status_code == 200
        wait_for(lambda: len(caplog.records) >= 2)
    for record in caplog.records:
        line = json.loads(record.message)
        assert line.pop("seconds") > 0 and line.pop("prompt_tokens") >= 1
        assert line == {
            "request_id": "abc", "method": "POST", "path": "/v1/completions", "status": 200,
            "user": "ann", "prompts": 1, "completion_tokens": 2 * ASK["max_tokens"],
        }  # fmt: skip


def test_an_engine_that_has_ended_is_said_by_health():
    with Server(MODEL, CONFIG) as server:
        server.llm.close()
        status, told = get(server.url, "/health")
        assert status == 503 and b"closed" in told
        assert post(server.url, ASK)[0] == 503


def running_requests(url):
    """Requests in the batch, as /metrics tells."""
    text = get(url, "/metrics")[1].decode()
    lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_sigterm_under_load_ends_with_code_0():
    with served() as (process, url):
        found = []
        long = ASK | {"max_tokens": 200, "ignore_eos": True}
        threads = [
            threading.Thread(target=lambda: found.append(post(url, long))) for _ in range(8)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        wait_for(lambda: running_requests(url) >= 4)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        assert len(found) == 8
        for status, _, told in found:
            ok = status == 200 and told["usage"]["completion_tokens"] == 200
            assert ok or status == 503
        assert sum(status == 200 for status, _, _ in found) >= 4
        assert process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_second_ctrl_c_does_not_wait_for_the_drain():
    """The drain may take a minute; what is running then takes longer."""
    with served() as (process, url):
        found = []
        body = ASK | {"max_tokens": 250, "ignore_eos": True, "n": 100}

        def ask():
            with contextlib.suppress(httpx2.HTTPError):
                found.append(post(url, body)[0])

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: running_requests(url) >= 1)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: get(url, "/health")[0] == 503)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        thread.join(20)
        assert not thread.is_alive() and found in ([], [503])


def test_usage_errors_of_the_command_are_a_line(capsys):
    done = subprocess.run(
        [sys.executable, "-m", "minserve", "serve", MODEL, "--port", "99999"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "port=99999: expected 0 to 65535" in done.stderr and "Traceback" not in done.stderr
