"""`SamplingParams`: how a request's tokens are drawn and when they end.

Every field is checked, converted to its plain Python type and copied when the object is made, so
that later readers (at every step) can rely on the annotated type. `engine.admission` checks limits
that depend on the model or the configuration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NoReturn

from minserve.inputs.checks import (
    MOST_ITEMS,
    MOST_NAME_CHARS,
    Check,
    Refused,
    TooLong,
    checked,
    flag,
    integer,
    items,
    number,
    optional,
    read_mapping,
    shorten,
    text,
)
from minserve.inputs.errors import InvalidRequestError as InvalidRequestError
from minserve.inputs.structured import StructuredOutputs, plain_structure

WHOLE_VOCABULARY = -1
"""As `logprobs` or `prompt_logprobs`: all tokens."""
MOST_COUNT = 2**31 - 1
"""Largest token id, top-k and number of logprobs: float64 and int32 tensors hold it exactly."""
MOST_BIAS = 1e30
"""Largest bias: float32 can hold the sum of it and a logit."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is drawn and when to stop. Names and meanings are those of
    vLLM and OpenAI.

    Numbers may be scalars of numpy or torch; lists and maps may be None, and are copied. Raises
    InvalidRequestError if a value has another type or is out of its range.
    """

    max_tokens: int | None = 128
    """Most tokens to generate; None means up to the engine's `max_model_len`."""
    min_tokens: int = 0
    """Tokens to generate before an end-of-sequence token or a stop condition may end the text."""
    temperature: float = 1.0
    """0 is greedy; 1 samples from the model's own distribution."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 and -1 keep all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this total probability (Holtzman et al., 1904.09751)."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the likeliest one (arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Divide the positive (multiply the negative) logits of tokens seen in prompt or output."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token already generated."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each of its occurrences among the
    generated tokens."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids; minus infinity bans a token. Ids may be strings, as
    in JSON."""
    stop: Sequence[str] = ()
    """Strings that end the text; they are removed from it unless `include_stop_str_in_output`."""
    stop_token_ids: Sequence[int] = ()
    """Token ids that end the text, besides the model's own end-of-sequence ids."""
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    """Continue after the model's end-of-sequence tokens: for benchmarks of fixed length."""
    n: int = 1
    """Samples per prompt, each with its own random stream."""
    seed: int | None = None
    """With the same seed and equal logits, the same tokens are drawn, whatever else is in the
    batch. None: derived from the engine's seed and the request's number."""
    logprobs: int | None = None
    """Report each drawn token's log probability and this many top alternatives; -1: all tokens."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    cache_salt: str = ""
    """Requests share cached prefixes only with requests of the same salt. Give each tenant its own
    if timing must not reveal another tenant's prompts."""
    bad_words: Sequence[str] = ()
    """Words that are never generated: the last token that would complete one is banned, with and
    without a space before the word."""
    allowed_token_ids: Sequence[int] | None = None
    """Only these tokens are drawn; None allows all."""
    detokenize: bool = True
    """False: token ids only, no text."""
    structured_outputs: StructuredOutputs | None = None
    """The form that the text must have: a JSON schema, a regular expression, a choice, a grammar.
    None: any text."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            given = getattr(self, name)
            if given is _PLAIN_DEFAULTS.get(name, check):
                continue
            where = f"SamplingParams.{name}"
            object.__setattr__(self, name, checked(where, given, check, InvalidRequestError))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"SamplingParams.min_tokens={self.min_tokens} is larger than "
                f"max_tokens={self.max_tokens}: lower the one or raise the other"
            )
        if self.stop and not self.detokenize:
            raise InvalidRequestError(
                "SamplingParams.detokenize=False makes no text in which SamplingParams.stop could "
                "be found: use stop_token_ids, or detokenize=True"
            )
        if self.ignore_eos and self.structured_outputs is not None:
            raise InvalidRequestError(
                "SamplingParams.ignore_eos continues after the end of the text, and "
                "structured_outputs allows nothing there: leave out one of them"
            )

    @property
    def has_penalties(self) -> bool:
        """True if the sampler needs the tokens seen so far."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def plain(params: Any) -> SamplingParams:
    """A SamplingParams whose checks have run; the same object if it is one already.

    A subclass may have skipped the checks or may compute its attributes, and `__new__` makes an
    object without fields: for these, a new object is made. Raises InvalidRequestError.
    """
    if not issubclass(type(params), SamplingParams):  # isinstance would call its own methods
        raise InvalidRequestError(f"the parameters are {shorten(params)}: expected SamplingParams")
    if type(params) is SamplingParams and vars(params).keys() == _CHECKS.keys():
        return params
    try:
        values = {item.name: getattr(params, item.name) for item in fields(SamplingParams)}
    except Exception as error:
        raise InvalidRequestError(
            f"the parameters cannot be read ({type(error).__name__}): make them with "
            "SamplingParams(...)"
        ) from None
    return SamplingParams(**values)


class FrozenDict(dict[Any, Any]):
    """A dict that cannot be changed. A subclass of dict, so that `asdict`, JSON and equality
    work."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("this mapping cannot be changed: make a new SamplingParams")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict], tuple[dict[Any, Any]]]:
        return FrozenDict, (dict(self),)

    def __copy__(self) -> FrozenDict:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenDict:
        return self


def _top_k(value: Any) -> int:
    top_k: int = integer(-1, MOST_COUNT, "-1 or 0 keep all tokens")(value)
    return max(top_k, 0)


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    each = text(empty=False)
    strings: tuple[str, ...] = items(each, "a string or a list of strings")(value)
    return strings


def _bad_words(value: Any) -> tuple[str, ...]:
    words: tuple[str, ...] = () if value is None else _WORDS(value)
    return words


def _stop_token_ids(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(dict.fromkeys(_IDS(value)))


def _allowed_token_ids(value: Any) -> tuple[int, ...]:
    ids = tuple(dict.fromkeys(_IDS(value)))
    if not ids:
        raise Refused("at least one token id, or None to allow all")
    return ids


def _logit_bias(value: Any) -> FrozenDict:
    if value is None:
        return FrozenDict()
    expected = "a mapping from token ids to numbers"
    if not isinstance(value, Mapping):
        raise Refused(expected)
    try:
        pairs = read_mapping(value, MOST_ITEMS)
    except TooLong as error:
        raise Refused(f"{expected}, at most {MOST_ITEMS} of them; this {error}") from None
    biases: dict[int, float] = {}
    for key, bias in pairs:
        try:
            token = _TOKEN(int(key) if _is_digits(key) else key)
        except Refused:
            raise Refused("token ids (integers from 0) as keys", "", None) from None
        if token in biases:
            raise Refused(f"each token once, and token {token} is there twice")
        try:
            biases[token] = _BIAS(bias)
        except Refused as refused:
            raise Refused(str(refused), f"[{token}]", bias) from None
    return FrozenDict(sorted(biases.items()))


def _is_digits(key: Any) -> bool:
    return isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20


_TOKEN = integer(0, MOST_COUNT)
_IDS = items(_TOKEN, "a list of token ids")
_WORDS = items(text(empty=False, blank=False), "a list of strings")
_BIAS = number(-MOST_BIAS, MOST_BIAS, also=-math.inf, note="minus infinity bans the token")
_NUM_LOGPROBS = optional(integer(-1, MOST_COUNT, "-1 is the whole vocabulary; or None"))
_PENALTY = number(-2.0, 2.0)

_CHECKS: dict[str, Check] = {
    "max_tokens": optional(integer(1, note="or None")),
    "min_tokens": integer(0),
    "temperature": number(0.0, 1e6, note="0 is greedy"),
    "top_k": _top_k,
    "top_p": number(0.0, 1.0, above=True),
    "min_p": number(0.0, 1.0),
    "repetition_penalty": number(1e-6, 1e6, note="1 is off"),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "logit_bias": _logit_bias,
    "stop": _stop,
    "stop_token_ids": _stop_token_ids,
    "include_stop_str_in_output": flag,
    "ignore_eos": flag,
    "n": integer(1, MOST_COUNT),
    "seed": optional(integer(note="or None")),
    "logprobs": _NUM_LOGPROBS,
    "prompt_logprobs": _NUM_LOGPROBS,
    "skip_special_tokens": flag,
    "cache_salt": lambda value: "" if value is None else text(most=MOST_NAME_CHARS)(value),
    "bad_words": _bad_words,
    "allowed_token_ids": optional(_allowed_token_ids),
    "detokenize": flag,
    "structured_outputs": optional(plain_structure),
}

# The defaults, which most fields of most requests have. Compared by identity, so that no other
# value is taken for them.
_PLAIN_DEFAULTS = {
    item.name: item.default for item in fields(SamplingParams) if item.default is not MISSING
}
