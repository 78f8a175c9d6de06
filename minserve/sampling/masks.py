"""Which tokens a request may draw: one interface for lists, bad words, grammars and verifiers.

A `LogitsMask` returns the allowed tokens for one position of one request, on the host.
`plan_sampling` calls it, and `edit_logits` applies the result after biases and penalties, so that a
banned token stays banned. Reported log probabilities are those of the model, as always. Handles
text only to encode bad words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from minserve.inputs.params import InvalidRequestError, SamplingParams
from minserve.request import LogitsMask, Request, TokenMask
from minserve.sampling.grammar import Grammars

__all__ = [
    "AllowedTokens",
    "BadWords",
    "LogitsMask",
    "TokenMask",
    "make_masks",
    "pack_tokens",
    "prepare_bad_words",
]


class Encoder(Protocol):
    """The part of a tokenizer that masks need."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ...


@dataclass(frozen=True, eq=False)
class AllowedTokens:
    """Allows only these tokens, at every position."""

    mask: TokenMask

    @property
    def needs_known_tokens(self) -> bool:
        """See `LogitsMask`."""
        return False

    def at(self, request: Request, tokens: Sequence[int]) -> TokenMask:
        """See `LogitsMask.at`."""
        return self.mask


class BadWords:
    """Bans tokens that would complete one of these sequences among the generated tokens."""

    def __init__(self, sequences: Sequence[tuple[int, ...]]) -> None:
        self._always = tuple(each[0] for each in sequences if len(each) == 1)
        # By the token before the last one: at most positions one look-up is enough.
        self._longer: dict[int, list[tuple[int, ...]]] = {}
        for each in sequences:
            if len(each) > 1:
                self._longer.setdefault(each[-2], []).append(each)
        self._single = TokenMask(banned=self._always)

    @property
    def needs_known_tokens(self) -> bool:
        """See `LogitsMask`: a word of several tokens depends on the tokens before."""
        return bool(self._longer)

    def at(self, request: Request, tokens: Sequence[int]) -> TokenMask:
        """See `LogitsMask.at`."""
        num_output = len(tokens) - request.num_prompt_tokens
        if not self._longer or num_output <= 0:
            return self._single
        found = self._longer.get(tokens[-1])
        if found is None:
            return self._single
        completed = [
            each[-1]
            for each in found
            if num_output >= len(each) - 1 and tuple(tokens[1 - len(each) :]) == each[:-1]
        ]
        return TokenMask(banned=(*self._always, *completed))


def make_masks(
    params: SamplingParams, tokenizer: Encoder | None, grammars: Grammars | None = None
) -> tuple[LogitsMask, ...]:
    """The masks for these parameters: made once per prompt, for `Request.masks` of all its samples.
    `grammars` compiles the forms of structured outputs; None: there is no tokenizer for them.

    Raises InvalidRequestError if no token is left to draw, if there is no tokenizer, or if a form
    cannot be compiled."""
    masks: list[LogitsMask] = []
    grammar = (grammars or Grammars(None, (), 0)).mask(params)
    if grammar is not None:
        masks.append(grammar)
    if params.allowed_token_ids is not None:
        masks.append(AllowedTokens(TokenMask(allowed=pack_tokens(params.allowed_token_ids))))
    words = prepare_bad_words(params, tokenizer)
    if words:
        masks.append(BadWords(words))
        banned = {token for token, bias in params.logit_bias.items() if bias == -math.inf}
        banned.update(each[0] for each in words if len(each) == 1)
        if params.allowed_token_ids is not None and banned.issuperset(params.allowed_token_ids):
            raise InvalidRequestError(
                "SamplingParams.bad_words and logit_bias ban all of allowed_token_ids: allow other "
                "tokens"
            )
    return tuple(masks)


def prepare_bad_words(
    params: SamplingParams, tokenizer: Encoder | None
) -> tuple[tuple[int, ...], ...]:
    """The token sequences of `params.bad_words`: each word at the beginning of a text, and after
    a space. (vLLM omits the second if it has another number of tokens; the word can then be
    generated after a space.)

    Raises InvalidRequestError without a tokenizer.
    """
    if not params.bad_words:
        return ()
    if tokenizer is None:
        raise InvalidRequestError(
            "SamplingParams.bad_words needs a tokenizer and this model came without one: ban token "
            "ids with logit_bias"
        )
    sequences: dict[tuple[int, ...], None] = {}
    for word in params.bad_words:
        plain = tuple(tokenizer.encode(word.lstrip(), add_special_tokens=False))
        spaced = tuple(tokenizer.encode(" " + word.lstrip(), add_special_tokens=False))
        if plain:
            sequences[plain] = None
        if spaced:
            sequences[spaced] = None
    return tuple(sequences)


def pack_tokens(token_ids: Sequence[int]) -> npt.NDArray[np.uint8]:
    """`TokenMask.allowed` for these tokens: a bit each, up to the largest."""
    ids = np.asarray(token_ids, dtype=np.int64)
    bits = np.zeros(int(ids.max(initial=0)) + 1, dtype=np.uint8)
    bits[ids] = 1
    return np.packbits(bits, bitorder="little")
