"""Checks whether a request can be served at all, with one sentence per refusal.

Runs before anything is queued, so a bad request costs the others nothing. It knows limits, not
load: a request that only has to wait is not refused. Types and ranges that do not depend on a model
were checked when the parameters were made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from minserve.config import ResolvedConfig
from minserve.inputs.params import WHOLE_VOCABULARY, InvalidRequestError, SamplingParams, plain
from minserve.sampling import check_token_ids


def check_request(
    request_id: str,
    prompt: Sequence[int],
    params: SamplingParams,
    config: ResolvedConfig,
    max_request_tokens: int,
    has_tokenizer: bool,
) -> SamplingParams:
    """The checked parameters to serve the request with; -1 logprobs are replaced by the count.

    Raises InvalidRequestError if the request can never be served. `max_request_tokens` is the
    longest prompt plus output that the model and the KV pool allow.
    """
    try:
        params = plain(params)
        _check_prompt(prompt, config)
        _check_sizes(params, config)
        check_token_ids(params, config.model.vocab_size)
        if params.stop and not has_tokenizer:
            raise InvalidRequestError(
                "stop strings need a tokenizer and this model came without one; use stop_token_ids"
            )
        _check_something_is_left(params, config)
        _check_length(len(prompt), params, config, max_request_tokens)
        params = _resolve_logprobs(params, config.model.vocab_size)
        _check_entries(len(prompt), params, config)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"request {request_id}: {error}") from None
    return params


def _check_prompt(prompt: Sequence[int], config: ResolvedConfig) -> None:
    vocab = config.model.vocab_size
    if not prompt:
        raise InvalidRequestError("the prompt is empty; give at least one token")
    if len(prompt) >= config.max_model_len:
        raise InvalidRequestError(
            f"a prompt of {len(prompt)} tokens leaves no room for output within "
            f"max_model_len={config.max_model_len}: shorten the prompt or raise "
            "scheduling.max_model_len"
        )
    try:
        ids = np.asarray(prompt)
    except (ValueError, OverflowError):  # lists of unequal lengths
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InvalidRequestError(
            "the prompt's token ids are not all 64-bit integers: give a list of integers"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab:
        raise InvalidRequestError(
            f"token id {low if low < 0 else high} in the prompt is outside the vocabulary of "
            f"{vocab}"
        )


def _check_sizes(params: SamplingParams, config: ResolvedConfig) -> None:
    """Refuse sizes that would delay all requests, before any work is done for them."""
    limits = config.config.admission
    if params.n < 1:  # a request without samples would never end
        raise InvalidRequestError(f"SamplingParams.n={params.n}: expected at least 1")
    longest = max(map(len, (*params.stop, *params.bad_words)), default=0)
    ids, biases = len(params.stop_token_ids), len(params.logit_bias)
    table = [
        (params.n, limits.max_n, "max_n", "n asks for {} samples"),
        (len(params.stop), limits.max_stop_strings, "max_stop_strings", "stop has {} strings"),
        (len(params.bad_words), limits.max_bad_words, "max_bad_words", "bad_words has {} words"),
        (longest, limits.max_stop_chars, "max_stop_chars", "stop or bad_words has {} characters"),
        (ids, limits.max_stop_token_ids, "max_stop_token_ids", "stop_token_ids has {} tokens"),
        (biases, limits.max_logit_biases, "max_logit_biases", "logit_bias has {} tokens"),
    ]
    for size, most, field, said in table:
        if size > most:
            raise InvalidRequestError(
                f"SamplingParams.{said.format(size)}, and admission.{field} allows {most}: ask for "
                "less, or raise that field"
            )


def _check_something_is_left(params: SamplingParams, config: ResolvedConfig) -> None:
    """Refuse bans that leave no token to draw."""
    vocab = config.model.vocab_size
    banned = {token for token, bias in params.logit_bias.items() if bias == -math.inf}
    why = "SamplingParams.logit_bias bans"
    if params.min_tokens:
        banned.update(params.stop_token_ids)
        if not params.ignore_eos:
            banned.update(config.model.eos_token_ids)
        why = "SamplingParams.logit_bias and min_tokens ban"
    allowed = params.allowed_token_ids
    if allowed is None and len(banned) >= vocab:
        raise InvalidRequestError(f"{why} all {vocab} tokens of the vocabulary: leave some")
    if allowed is not None and banned.issuperset(allowed):
        raise InvalidRequestError(f"{why} all of allowed_token_ids: allow other tokens")


def _check_length(
    num_prompt: int, params: SamplingParams, config: ResolvedConfig, max_request_tokens: int
) -> None:
    least = params.max_tokens if params.ignore_eos else params.min_tokens
    shortest = min(num_prompt + max(1, least or 1), config.max_model_len)
    if shortest > max_request_tokens:
        raise InvalidRequestError(
            f"{shortest} tokens can never fit into the KV pool, which holds "
            f"{max_request_tokens}: raise memory.kv_bytes or ask for less"
        )


def _resolve_logprobs(params: SamplingParams, vocab: int) -> SamplingParams:
    """Replace -1 logprobs by the size of the vocabulary, and refuse more than that."""
    most = max(params.logprobs or 0, params.prompt_logprobs or 0)
    if most > vocab:
        raise InvalidRequestError(
            f"{most} logprobs asked for, the vocabulary has {vocab} tokens: -1 asks for all"
        )
    if WHOLE_VOCABULARY not in (params.logprobs, params.prompt_logprobs):
        return params
    return replace(
        params,
        logprobs=vocab if params.logprobs == WHOLE_VOCABULARY else params.logprobs,
        prompt_logprobs=(
            vocab if params.prompt_logprobs == WHOLE_VOCABULARY else params.prompt_logprobs
        ),
    )


def _check_entries(num_prompt: int, params: SamplingParams, config: ResolvedConfig) -> None:
    """Refuse more log probabilities than the host should store for one request."""
    room = config.max_model_len - num_prompt
    num_output = room if params.max_tokens is None else min(room, params.max_tokens)
    entries = num_output * (params.logprobs or 0) + num_prompt * (params.prompt_logprobs or 0)
    entries *= params.n
    most = config.config.admission.max_logprob_entries
    if entries > most:
        raise InvalidRequestError(
            f"{entries} log probabilities asked for (tokens times alternatives), and "
            f"admission.max_logprob_entries allows {most}: ask for fewer alternatives or tokens"
        )
