"""What is sent, and what answers mean."""

from __future__ import annotations

import json

import pytest

from minserve.bench.http.wire import (
    Chunk,
    Options,
    ServerError,
    body_of,
    error_text,
    read_chunk,
    text_of,
)
from minserve.bench.workloads.traffic import fixed_length
from minserve.request import SamplingParams

PARAMS = fixed_length(7, seed=3)


def body(prompt: tuple[int, ...] | str, params: SamplingParams = PARAMS, **options: object) -> dict:
    return json.loads(body_of(prompt, params, Options("m", **options)))  # type: ignore[arg-type]


def test_a_completion_has_token_ids_and_exactly_so_many_tokens() -> None:
    assert body((4, 5)) == {
        "model": "m", "prompt": [4, 5], "max_tokens": 7, "min_tokens": 7, "ignore_eos": True,
        "temperature": 0.0, "seed": 3, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_servers_that_know_only_openais_fields_get_only_those() -> None:
    sent = body((4, 5), as_text=True, standard_fields=True)
    assert not sent.keys() & {"min_tokens", "ignore_eos"} and sent["prompt"] == text_of((4, 5))


def test_chat_has_a_message_of_text() -> None:
    sent = body((4, 5), endpoint="chat")
    assert sent["messages"] == [{"role": "user", "content": text_of((4, 5))}]
    assert "prompt" not in sent
    assert body("Hello", endpoint="chat")["messages"][0]["content"] == "Hello"
    assert body("Hello")["prompt"] == "Hello"


def test_extra_fields_replace_ours() -> None:
    sent = body((4,), extra_body={"temperature": 1.0, "cache_salt": "a"})
    assert sent["temperature"] == 1.0 and sent["cache_salt"] == "a"


def test_prompts_share_as_much_text_as_they_shared_ids() -> None:
    first, second = text_of((5, 9, 11, 70)), text_of((5, 9, 12, 70))
    assert first.split()[:2] == second.split()[:2] and first.split()[2] != second.split()[2]
    assert len(first.split()) == 4


@pytest.mark.parametrize(
    ("event", "chunk"),
    [
        ({"choices": [{"text": "a"}]}, Chunk("a")),
        ({"choices": [{"text": "abc", "token_ids": [1, 2, 3]}]}, Chunk("abc", 3)),
        ({"choices": [{"text": "", "finish_reason": "stop"}]}, Chunk("", finish_reason="stop")),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, Chunk()),
        ({"choices": [{"delta": {"content": "a"}}]}, Chunk("a")),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, Chunk("hm")),
        ({"choices": [{"message": {"content": "whole"}}]}, Chunk("whole")),
        ({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}},
         Chunk(num_prompt_tokens=3, num_output_tokens=9)),
        ({"choices": [{"text": "a"}], "usage": None}, Chunk("a")),
        ({"choices": [{"text": "a"}], "usage": {"completion_tokens": True}}, Chunk("a")),
        ({}, Chunk()),
    ],
)  # fmt: skip
def test_events_of_both_endpoints(event: object, chunk: Chunk) -> None:
    assert read_chunk(json.dumps(event)) == chunk
    assert chunk.delivers == bool(chunk.text)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"error": {"message": "out of pages", "code": 500}}, "out of pages"),
        ({"error": "out of pages"}, "out of pages"),
        ({"error": {"code": 500}}, "code"),
    ],
)
def test_an_error_inside_a_stream_is_the_servers(event: object, words: str) -> None:
    with pytest.raises(ServerError, match=words):
        read_chunk(json.dumps(event))


@pytest.mark.parametrize("data", ["{", "[1]", "3", "[" * 5000, '{"choices": 3}', '{"usage": [1]}'])
def test_what_is_no_answer_is_said_in_a_short_sentence(data: str) -> None:
    with pytest.raises(ValueError, match="an event") as caught:
        read_chunk(data)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (b'{"error": {"message": "too long"}}', "too long"),
        (b'{"message": "too long", "object": "error"}', "too long"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b"Bad\n Gateway", "Bad Gateway"),
        (b"", ""),
        (b"\xff", "\ufffd"),
        (b"x" * 9000, "x" * 497 + "..."),
    ],
)
def test_the_sentence_of_an_error_answer(given: bytes, text: str) -> None:
    assert error_text(given) == text
