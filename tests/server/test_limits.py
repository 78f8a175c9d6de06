"""What a server refuses before any work is done: keys, sizes, slow clients, full queues."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from server.conftest import CONFIG, MODEL

from minserve import AsyncLLM
from minserve.server import Server, ServerError, ServerOptions
from minserve.server.options import ServerOptions as Options

ASK = {"model": MODEL, "prompt": "import ", "max_tokens": 4, "temperature": 0}


def post(url, body, headers=None, path="/v1/completions"):
    """Status, headers and body of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        url + path, data, {"Content-Type": "application/json"} | (headers or {})
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def get(url, path, headers=None):
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url + path, headers=headers or {}), timeout=30
        ) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("chat", [False, True])
def test_an_answer_that_the_context_has_no_room_for_is_refused(server, chat):
    """Not shortened: the client would take a cut answer for a whole one."""
    path, asked = "/v1/completions", {"prompt": [5] * 500}
    if chat:
        path, asked = "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}
    limit = {"max_completion_tokens" if chat else "max_tokens": 512 if chat else 13}
    status, _, told = post(server.url, asked | limit, path=path)
    error = told["error"]
    assert status == 400 and error["code"] == "context_length_exceeded"
    assert error["param"] == "max_tokens" and "at most 512 together" in error["message"]
    if not chat:
        fits = asked | {"max_tokens": 12, "ignore_eos": True}
        status, _, told = post(server.url, fits)
        assert status == 200 and told["usage"]["completion_tokens"] == 12
        # No limit was given: the default of 16 takes what room there is.
        status, _, told = post(server.url, asked | {"ignore_eos": True})
        assert status == 200 and told["usage"]["completion_tokens"] == 12
    assert_idle(server)


@pytest.fixture(scope="module")
def llm():
    with AsyncLLM(MODEL, CONFIG, progress=False) as made:
        yield made


def test_the_small_routes(server):
    assert get(server.url, "/health")[0] == 200
    assert json.loads(get(server.url, "/version")[1])["version"]
    assert b"vllm:num_requests_running" in get(server.url, "/metrics")[1]
    _, _, found = post(server.url, {"prompt": "import os"}, path="/tokenize")
    assert found["count"] == len(found["tokens"]) > 1
    _, _, text = post(server.url, {"tokens": found["tokens"][-1:]}, path="/detokenize")
    assert text["prompt"].strip() == "os"
    status, _, told = post(server.url, {"tokens": [10**6]}, path="/detokenize")
    assert status == 400 and "1000000" in told["error"]["message"]
    assert get(server.url, "/nothing")[0] == 404
    assert get(server.url, "/v1/completions")[0] == 405


def test_a_key_is_asked_for_everywhere_but_for_health(llm):
    with Server(llm, options=Options(port=0, api_key="s3cret")) as guarded:
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "s3cret"}):
            status, _, told = post(guarded.url, ASK, headers)
            assert status == 401 and told["error"]["code"] == "invalid_api_key"
        assert post(guarded.url, ASK, {"Authorization": "Bearer s3cret"})[0] == 200
        assert get(guarded.url, "/metrics")[0] == 401 and get(guarded.url, "/health")[0] == 200


def test_large_bodies_are_refused_before_they_are_read(llm):
    with Server(llm, options=Options(port=0, max_body_bytes=1000)) as small:
        status, _, told = post(small.url, ASK | {"prompt": "x" * 1000})
        assert status == 413 and "1000 bytes" in told["error"]["message"]
        host, port = small.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/"
                        b"json\r\nTransfer-Encoding: chunked\r\n\r\n")  # fmt: skip
            for _ in range(3):
                raw.sendall(b"190\r\n" + b" " * 400 + b"\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 413")
        assert post(small.url, ASK)[0] == 200


def test_other_content_types_are_refused(server):
    status, _, told = post(server.url, ASK, {"Content-Type": "text/plain"})
    assert status == 415 and "application/json" in told["error"]["message"]


def test_a_slow_body_is_told_and_slow_headers_are_closed(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json"
                    b"\r\nContent-Length: 50\r\n\r\n{")  # fmt: skip
        assert raw.recv(100).startswith(b"HTTP/1.1 408")
    for begin in (b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: x\r\nX: "):
        with socket.create_connection((host, int(port)), timeout=20) as raw:
            raw.sendall(begin)
            assert raw.recv(100) == b"", begin
    # A second request on a connection has the same limit, and a whole one is answered.
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += raw.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200")
        raw.sendall(b"GET /vers")
        assert raw.recv(100) == b""


def test_a_request_keeps_its_sane_name(server):
    assert post(server.url, ASK, {"X-Request-Id": "abc-1"})[1]["X-Request-Id"] == "abc-1"
    other = post(server.url, ASK, {"X-Request-Id": "a b" * 100})[1]["X-Request-Id"]
    assert len(other) == 32


def test_a_full_queue_is_429_with_a_time_to_come_back():
    bounded = CONFIG.with_values(
        {"scheduling.max_num_seqs": 1, "scheduling.max_queued_requests": 1}
    )
    with Server(MODEL, bounded) as server:
        found = []
        long = ASK | {"max_tokens": 300, "ignore_eos": True}
        threads = [
            threading.Thread(target=lambda: found.append(post(server.url, long))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = [status for status, _, _ in found]
        assert set(statuses) == {200, 429}
        for status, headers, told in found:
            if status == 429:
                assert 1 <= int(headers["Retry-After"]) <= 60
                assert told["error"]["code"] == "queue_full"
        assert server.metrics()["minserve:request_refused_total"] == statuses.count(429)
        assert post(server.url, ASK)[0] == 200


def test_a_deadline_ends_a_request_and_frees_its_pages(llm):
    with Server(llm, options=Options(port=0, request_timeout_s=60.0)) as server:
        long = ASK | {"max_tokens": 450, "ignore_eos": True, "timeout_s": 0.05}
        status, _, told = post(server.url, long)
        assert status == 504 and told["error"]["code"] == "deadline_exceeded"
        assert_idle(server)
        request = urllib.request.Request(
            f"{server.url}/v1/completions", json.dumps(long | {"stream": True}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with pytest.raises(urllib.error.HTTPError) as caught:
            # Before the first event it is a status; later it would be an event.
            said = urllib.request.urlopen(request, timeout=30).read().decode()
            assert "deadline_exceeded" in said and said.endswith("data: [DONE]\n\n")
            raise urllib.error.HTTPError("", 504, "", None, None)
        assert caught.value.code == 504
        assert_idle(server)


def assert_idle(server, seconds=10.0):
    """No request is left in the engine."""
    end = time.monotonic() + seconds
    while server.llm._engine.has_requests:
        assert time.monotonic() < end, "a request is left in the engine"
        time.sleep(0.01)
    assert server.llm._engine.memory.use().owned_bytes == 0


@pytest.mark.parametrize(
    "given", [{"port": 70000}, {"api_key": ""}, {"max_body_bytes": 0}, {"drain_s": -1.0},
              {"request_timeout_s": 0.0}, {"price_per_hour": -1.0}]
)  # fmt: skip
def test_options_that_cannot_work_are_refused(given):
    with pytest.raises(ServerError, match=r"expected|empty"):
        ServerOptions(**given)


def test_a_taken_port_is_a_sentence(server):
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(ServerError, match="cannot be used"):
        Server(MODEL, CONFIG, ServerOptions(port=port))


def test_web_pages_of_allowed_origins_may_call_also_with_a_key(llm):
    options = Options(port=0, api_key="k", allow_origins=("https://a.example",))
    with Server(llm, options=options) as open_to:
        request = urllib.request.Request(
            f"{open_to.url}/v1/completions", method="OPTIONS",
            headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST",
                     "Access-Control-Request-Headers": "authorization"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == "https://a.example"
        headers = {"Origin": "https://a.example"}
        status, told, _ = post(open_to.url, ASK, headers)
        assert status == 401 and told["Access-Control-Allow-Origin"] == "https://a.example"


def test_a_server_that_cannot_start_says_so(llm, monkeypatch):
    from minserve.server import serving

    def fail(*given):
        raise ValueError("planted")

    monkeypatch.setattr(serving, "Running", fail)
    with pytest.raises(ServerError, match="did not start: planted"):
        Server(llm, options=Options(port=0)).start()


def test_salts_and_priorities_are_taken(server):
    assert post(server.url, ASK | {"cache_salt": "a", "priority": 3})[0] == 200
    assert post(server.url, ASK | {"priority": "high"})[0] == 400
