"""From the fields of a request to `SamplingParams`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minserve.request import SamplingParams, StructuredOutputs
from minserve.server.errors import ApiError
from minserve.server.protocol.requests import ChatRequest, CompletionRequest

_SAME_NAME = (
    "n", "seed", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logit_bias", "stop", "stop_token_ids",
    "include_stop_str_in_output", "ignore_eos", "min_tokens", "bad_words", "allowed_token_ids",
    "skip_special_tokens", "cache_salt",
)  # fmt: skip
COMPLETION_TOKENS = 16
"""`max_tokens` of a completion that gives none, as in OpenAI's API. A chat's answer may fill what
the model allows."""


def completion_params(body: CompletionRequest, defaults: SamplingParams) -> SamplingParams:
    """Parameters of a completion: `defaults`, changed by what the request gives.

    Raises InvalidRequestError and ApiError.
    """
    values = _shared(body)
    values["max_tokens"] = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    values["logprobs"] = body.logprobs
    if body.echo and body.logprobs is not None:
        values["prompt_logprobs"] = body.logprobs
    return replace(defaults, **values)


def chat_params(body: ChatRequest, defaults: SamplingParams) -> SamplingParams:
    """Parameters of a chat's answer. Raises InvalidRequestError and ApiError."""
    values = _shared(body)
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise ApiError(
            400,
            f"max_tokens={body.max_tokens} and max_completion_tokens={body.max_completion_tokens} "
            "differ: give one",
            "max_completion_tokens",
        )
    values["max_tokens"] = next(iter(limits), None)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", "top_logprobs")
    values["logprobs"] = (body.top_logprobs or 0) if body.logprobs else None
    return replace(defaults, **values)


def _shared(body: CompletionRequest | ChatRequest) -> dict[str, Any]:
    values = {name: getattr(body, name) for name in _SAME_NAME}
    given = {name: value for name, value in values.items() if value is not None}
    form = _form(body)
    if form is not None:
        given["structured_outputs"] = form
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream=true", "stream_options")
    return given


def _form(body: CompletionRequest | ChatRequest) -> StructuredOutputs | None:
    """The form that the text must have."""
    asked = body.response_format
    given = dict(body.structured_outputs) if body.structured_outputs is not None else None
    if asked is not None and given is not None:
        raise ApiError(400, "response_format and structured_outputs: give one", "response_format")
    if given is not None:
        return _made(given, "structured_outputs")
    if asked is None or asked == {"type": "text"}:
        return None
    kind = asked.get("type")
    if kind == "json_object" and asked.keys() == {"type"}:
        return _made({"json_object": True}, "response_format")
    schema = asked.get("json_schema")
    if (
        kind == "json_schema"
        and isinstance(schema, dict)
        and isinstance(schema.get("schema"), dict)
    ):
        return _made({"json": schema["schema"]}, "response_format")
    raise ApiError(
        400,
        "response_format: expected {'type': 'text'}, {'type': 'json_object'}, or {'type': "
        "'json_schema', 'json_schema': {'name': ..., 'schema': {...}}}",
        "response_format",
    )


def _made(values: dict[str, Any], field: str) -> StructuredOutputs:
    known = StructuredOutputs.__dataclass_fields__
    for name in values:
        if name not in known:
            raise ApiError(
                400, f"{field}.{name}: expected one of {', '.join(known)}", f"{field}.{name}"
            )
    return StructuredOutputs(**values)
