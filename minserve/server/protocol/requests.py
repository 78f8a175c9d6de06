"""What clients may send. An unknown field is refused by its name, never accepted and ignored.

Names are those of OpenAI's API and, beyond it, of vLLM's. Types are checked here; ranges where the
values are used (`SamplingParams`), so that a limit is written once.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TokenIds = list[int]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    """Send the number of tokens in a last event."""
    continuous_usage_stats: bool = False
    """Send it in every event (vLLM)."""


class _Body(BaseModel):
    """A body whose unsupported fields may be there if they ask for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)

    harmless: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Field -> values that mean the same as its absence."""

    @model_validator(mode="before")
    @classmethod
    def _drop_harmless(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        drop = [
            name
            for name, values in cls.harmless.items()
            if name in data and any(_is_same(data[name], value) for value in values)
        ]
        return {name: value for name, value in data.items() if name not in drop} if drop else data


def _is_same(given: Any, value: Any) -> bool:
    return type(given) is type(value) and bool(given == value)


class _Generation(_Body):
    """The fields that both kinds of generation share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=256)
    """Stands in the request's line of the log."""
    n: int | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: TokenIds | None = None
    skip_special_tokens: bool | None = None
    cache_salt: str | None = None
    priority: int | None = None
    return_token_ids: bool | None = None
    """Give the token ids of prompt and answer too (vLLM)."""
    timeout_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Deadline of this request in seconds; ours."""
    response_format: dict[str, Any] | None = None
    """`text`, `json_object`, or `json_schema`."""
    structured_outputs: dict[str, Any] | None = None
    """vLLM's: exactly one of `json`, `regex`, `choice`, `grammar`, `json_object`."""


class CompletionRequest(_Generation):
    """`POST /v1/completions`."""

    harmless = {"suffix": (None, ""), "best_of": (None, 1)}

    prompt: str | list[str] | TokenIds | list[TokenIds]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0)


class ChatRequest(_Generation):
    """`POST /v1/chat/completions`."""

    harmless = {
        "function_call": (None, "none"),
        "functions": (None,),
        "parallel_tool_calls": (None, True),
        "store": (None, False),
        "service_tier": (None, "auto", "default"),
        "modalities": (None, ["text"]),
        "metadata": (None,),
        "reasoning_effort": (None,),
    }

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None


class TokenizeRequest(_Body):
    """`POST /tokenize`: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(_Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[int]
