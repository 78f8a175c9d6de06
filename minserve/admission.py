"""May this request be served at all? One check at the door, one sentence per refusal.

Runs before anything is queued, so that a bad request costs nobody anything. Knows limits, not load:
a request that merely has to wait is not refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from minserve.config import ResolvedConfig
from minserve.request import InvalidRequestError, SamplingParams
from minserve.sampling import check_token_ids


def check_request(
    request_id: str,
    prompt: Sequence[int],
    params: SamplingParams,
    config: ResolvedConfig,
    max_request_tokens: int,
    has_tokenizer: bool,
) -> None:
    """Raise InvalidRequestError when the request can never be served as asked.

    `max_request_tokens` is the longest prompt plus output that model and KV pool allow.
    """
    vocab, name = config.model.vocab_size, f"request {request_id}"
    if not prompt:
        raise InvalidRequestError(f"{name}: the prompt is empty; give at least one token")
    low, high = min(prompt), max(prompt)
    if low < 0 or high >= vocab:
        raise InvalidRequestError(
            f"{name}: token id {low if low < 0 else high} in the prompt is outside the vocabulary "
            f"of {vocab}"
        )
    try:
        check_token_ids(params, vocab)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{name}: {error}") from None
    if params.stop and not has_tokenizer:
        raise InvalidRequestError(
            f"{name}: stop strings need a tokenizer and this model came without one; use "
            "stop_token_ids"
        )
    most = max(params.logprobs or 0, params.prompt_logprobs or 0)
    if most > vocab:
        raise InvalidRequestError(
            f"{name}: {most} logprobs asked for, the vocabulary has {vocab} tokens"
        )
    if len(prompt) >= config.max_model_len:
        raise InvalidRequestError(
            f"{name}: a prompt of {len(prompt)} tokens leaves no room for output within "
            f"max_model_len={config.max_model_len}: shorten the prompt or raise "
            "scheduling.max_model_len"
        )
    least = params.max_tokens if params.ignore_eos else params.min_tokens
    shortest = min(len(prompt) + max(1, least or 1), config.max_model_len)
    if shortest > max_request_tokens:
        raise InvalidRequestError(
            f"{name}: {shortest} tokens can never fit into the KV pool, which holds "
            f"{max_request_tokens}: raise memory.kv_bytes or ask for less"
        )
