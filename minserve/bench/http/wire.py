"""What is sent to an OpenAI-compatible server, and what its answers mean.

Knows the two endpoints (completions, chat) and the fields that vLLM adds to OpenAI's; knows
nothing about connections or time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minserve.request import SamplingParams

EndpointName = Literal["completions", "chat"]
PATHS: Mapping[str, str] = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
}
DONE = "[DONE]"
MOST_ERROR_CHARS = 500

# One token each in most vocabularies, so that a prompt of n words has about n tokens.
_TEXT = (
    "time year people way day man thing woman life child world school state family student "
    "group country problem hand part place case week company system program question work "
    "government number night point home water room mother area money story fact month lot right "
    "study book eye job word business issue side kind head house service friend father power "
    "hour game line end member law car city community name president team minute idea kid body "
    "information back parent face others level office door health person art war history party "
    "result change morning reason research girl guy moment air teacher force education"
)
_WORDS = _TEXT.split()


class ServerError(Exception):
    """The server said, in the middle of an answer, that it failed. The message is the server's."""


@dataclass(frozen=True)
class Options:
    """What all requests of a run have in common."""

    model: str
    endpoint: EndpointName = "completions"
    as_text: bool = False
    """Send prompts as text, for servers that take no token ids. Chat always does."""
    standard_fields: bool = False
    """Send only OpenAI's fields: answers may then be shorter than asked for."""
    extra_body: Mapping[str, Any] | None = None
    """More fields for every request; they replace ours of the same name."""


@dataclass(frozen=True)
class Chunk:
    """What one event of an answer says."""

    text: str = ""
    num_token_ids: int = 0
    """Token ids told beside the text, where the server tells them."""
    finish_reason: str | None = None
    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None

    @property
    def delivers(self) -> bool:
        """True if it brings at least one token."""
        return bool(self.text or self.num_token_ids)


def text_of(token_ids: Sequence[int]) -> str:
    """Words in place of token ids: equal ids give equal words, so prompts share what they shared.
    The server's own tokenizer makes about one token of each."""
    return " ".join(_WORDS[token % len(_WORDS)] for token in token_ids)


def body_of(prompt: Sequence[int] | str, params: SamplingParams, options: Options) -> bytes:
    """The JSON body of one request."""
    as_text = options.as_text or options.endpoint == "chat"
    given = prompt if isinstance(prompt, str) else (text_of(prompt) if as_text else list(prompt))
    body: dict[str, Any] = {"model": options.model}
    if options.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": given}]
    else:
        body["prompt"] = given
    body |= {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if params.seed is not None:
        body["seed"] = params.seed
    if params.top_p != 1.0:
        body["top_p"] = params.top_p
    if not options.standard_fields:
        if params.ignore_eos:
            body["ignore_eos"] = True
        if params.min_tokens:
            body["min_tokens"] = params.min_tokens
    body |= options.extra_body or {}
    return json.dumps(body, separators=(",", ":")).encode()


def read_chunk(data: str) -> Chunk:
    """One event of a stream, or a whole answer that was not streamed.

    Raises ServerError if the server says that it failed, and ValueError for what is no answer.
    """
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("an event is nested too deeply") from None
    except ValueError:
        raise ValueError(f"an event is not JSON: {shortened(data)}") from None
    if not isinstance(found, dict):
        raise ValueError(f"an event is no JSON object: {shortened(data)}")
    if found.get("error"):
        raise ServerError(message_of(found))
    choices, usage = found.get("choices") or [], found.get("usage") or {}
    if not isinstance(choices, list) or not isinstance(usage, dict):
        raise ValueError(f"an event has no list of choices: {shortened(data)}")
    choice = choices[0] if choices and isinstance(choices[0], dict) else {}
    said = choice.get("delta") or choice.get("message") or {}
    text = choice.get("text") or ""
    if isinstance(said, dict):
        text = text or "".join(
            str(said.get(part) or "") for part in ("reasoning_content", "content")
        )
    token_ids = choice.get("token_ids")
    return Chunk(
        text=str(text),
        num_token_ids=len(token_ids) if isinstance(token_ids, list) else 0,
        finish_reason=choice.get("finish_reason"),
        num_prompt_tokens=_count(usage.get("prompt_tokens")),
        num_output_tokens=_count(usage.get("completion_tokens")),
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def message_of(answer: object) -> str:
    """The sentence in an error answer, in OpenAI's shape or another."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return shortened(str(error))


def error_text(body: bytes) -> str:
    """The sentence in the body of an answer that is an error."""
    text = body.decode("utf-8", "replace")
    try:
        return message_of(json.loads(text))
    except (ValueError, RecursionError):
        return shortened(text)


def shortened(text: str) -> str:
    """At most `MOST_ERROR_CHARS` characters of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_ERROR_CHARS else line[: MOST_ERROR_CHARS - 3] + "..."
