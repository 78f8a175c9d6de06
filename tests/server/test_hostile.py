"""Bodies that are wrong, truncated or made to hurt: each gets a 4xx, and the server goes on."""

from __future__ import annotations

import json
import random

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from server.test_limits import ASK, MODEL, post

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
DEEP = 100_000
WRONG = (None, True, -1, 0, 1.5, 1e308, "", "x", "\ud800", [], [[]], {}, {"a": 1}, [None], 10**30)


def bodies():
    """(name, path, bytes) of bodies that no request may have."""
    for path, right in (("/v1/completions", ASK), ("/v1/chat/completions", CHAT)):
        text = json.dumps(right).encode()
        for length in range(0, len(text), 9):
            yield f"cut at {length}", path, text[:length]
        yield "invalid UTF-8", path, text.replace(b"import", b"\xff\xfe").replace(b"hi", b"\xff")
        yield "deep list", path, b"[" * DEEP + b"]" * DEEP
        yield "deep object", path, b'{"a":' * DEEP + b"1" + b"}" * DEEP
        yield "a list", path, b"[]"
        yield "a number", path, b"1"
        yield "a long number", path, b'{"max_tokens": ' + b"9" * 10_000 + b"}"
        yield "NaN", path, json.dumps(right | {"temperature": float("nan")}).encode()
        yield "infinite", path, json.dumps(right | {"top_p": float("inf")}).encode()
        yield "doubled comma", path, text.replace(b",", b",,")
        yield "an enormous schema", path, json.dumps(
            right | {"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "schema": {"enum": ["x" * 50] * 20_000}}}}
        ).encode()  # fmt: skip
        nested = {"type": "integer"}
        for _ in range(200):
            nested = {"type": "object", "properties": {"a": nested}, "required": ["a"]}
        yield (
            "a deep schema",
            path,
            json.dumps(right | {"structured_outputs": {"json": nested}}).encode(),
        )
        yield (
            "a catastrophic regular expression",
            path,
            json.dumps(
                right | {"structured_outputs": {"regex": "(a{1,1000}){1,1000}{1,1000}"}}
            ).encode(),
        )
        yield (
            "a regular expression that is none",
            path,
            json.dumps(right | {"structured_outputs": {"regex": "(?<=a)b"}}).encode(),
        )
        draw = random.Random(23)
        for name in (*right, "temperature", "stop", "n", "logit_bias", "seed", "stream_options"):
            for value in WRONG:
                wrong = right | {name: value}
                yield f"{name}={value!r:.20}", path, json.dumps(wrong).encode()
        for number in range(20):
            junk = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 200)))
            yield f"junk {number}", path, junk


MAY_BE_RIGHT = (
    "a catastrophic",  # its automaton is small: it is served
"temperature=", "stop=", "n=", "logit_bias=", "seed=", "stream_options=", "model=",
                "prompt=", "messages=", "max_tokens=")  # fmt: skip


def test_hostile_bodies_get_a_sentence_and_the_server_goes_on(server):
    count = 0
    for name, path, body in bodies():
        status, _, told = post(server.url, body, path=path)
        assert status < 500, (name, path, told)
        assert status >= 400 or name.startswith(MAY_BE_RIGHT), (name, path)
        if status >= 400:
            assert set(told["error"]) == {"message", "type", "param", "code"}, name
            assert told["error"]["message"] and len(told["error"]["message"]) < 3000, name
        count += 1
    assert count > 200
    assert post(server.url, ASK)[0] == 200


@pytest.mark.slow
def test_the_document_describes_what_is_served(server, request):
    """schemathesis makes requests from the OpenAPI document: none may end in a 5xx."""
    most = 5000 if request.config.getoption("--full") else 300
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {
        "/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/detokenize",
        "/health", "/version", "/metrics",
    }  # fmt: skip
    seen: list[int] = []
    for operation in operations:
        share = most // len(operations)

        @given(case=operation.as_strategy())
        @settings(max_examples=share, deadline=None, database=None, derandomize=True,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        def one(case):
            answer = case.call()
            case.validate_response(answer, checks=[not_a_server_error])
            seen.append(answer.status_code)

        one()
    assert len(seen) > most // 4 and max(seen) < 500
    assert 400 in seen and 200 in seen
