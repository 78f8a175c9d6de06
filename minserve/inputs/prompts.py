"""The parts of a request other than `SamplingParams`: prompt, name, priority, arrival and salt.

Accepts every form of a prompt that vLLM accepts, and returns a copy in one plain form. Anything
else is refused with a sentence that says which part is wrong. Sizes are checked before anything is
tokenized. Knows nothing about tokenizers and vocabularies.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from minserve.inputs.checks import (
    MOST_ITEMS,
    MOST_NAME_CHARS,
    checked,
    integer,
    number,
    optional,
    shorten,
    text,
)
from minserve.inputs.params import InvalidRequestError
from minserve.inputs.reading import as_list, is_array, is_integer, reading


class TextPrompt(TypedDict):
    """A prompt in the form of vLLM's dictionaries: text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt in the form of vLLM's dictionaries: token ids."""

    prompt_token_ids: Sequence[int]


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt
"""Text, or token ids (a list, or an integer array of numpy or torch), or a dictionary of either."""

FORMS = "a string, a list of token ids, or a dictionary with 'prompt' or 'prompt_token_ids'"
_MOST_TOKEN_ID = 2**63 - 1
_Numbers = (int, float, complex)


@dataclass(frozen=True)
class PromptInput:
    """A prompt in its plain form: exactly one of the two fields is given."""

    text: str | None
    token_ids: list[int] | None


def parse_prompts(prompts: Any, max_chars: int) -> list[PromptInput]:
    """One prompt or a list of prompts, in order; an empty list gives no prompts. Raises
    InvalidRequestError, naming the first item that is not a prompt.

    A list of numbers is one prompt, and so is a one-dimensional integer array; a two-dimensional
    array has a prompt per row. `max_chars`: see `parse_prompt`.
    """
    return [_parse(prompt, name, max_chars) for name, prompt in _split(prompts, max_chars)]


def parse_each(prompts: Any, max_chars: int) -> list[PromptInput | InvalidRequestError]:
    """As `parse_prompts`, but a prompt that is refused is replaced by its error. Raises
    InvalidRequestError only if `prompts` cannot be split into prompts."""
    found: list[PromptInput | InvalidRequestError] = []
    for name, prompt in _split(prompts, max_chars):
        try:
            found.append(_parse(prompt, name, max_chars))
        except InvalidRequestError as error:
            found.append(error)
    return found


def parse_prompt(prompt: Any, max_chars: int) -> PromptInput:
    """One prompt, in any of its FORMS. Raises InvalidRequestError.

    `max_chars` (`ResolvedConfig.max_prompt_chars`) bounds the characters of a text, and the length
    of a list of ids, because each id stands for at least one character.
    """
    return _parse(prompt, "prompt", max_chars)


def check_prompt_text(prompt: Any, max_chars: int, name: str = "prompt") -> str:
    """The text of a prompt or of a rendered conversation, before it is tokenized. Raises
    InvalidRequestError if it is too long or not text."""
    if not issubclass(type(prompt), str):
        raise InvalidRequestError(f"{name}={shorten(prompt)}: expected a string")
    prompt = str.__str__(prompt)  # not the result of a subclass's own methods
    if len(prompt) > max_chars:
        raise InvalidRequestError(
            f"{name} has {len(prompt)} characters, and admission.max_prompt_chars allows "
            f"{max_chars}: shorten it, or raise that field"
        )
    plain: str = checked(name, prompt, text(most=max_chars), InvalidRequestError)
    return plain


def check_priority(value: Any, name: str = "priority") -> int:
    """A request's priority. Raises InvalidRequestError."""
    priority: int = checked(name, value, _PRIORITY, InvalidRequestError)
    return priority


def check_arrival(value: Any) -> float | None:
    """When a request arrived, in seconds of the engine's clock; None: now. Raises
    InvalidRequestError."""
    arrival_s: float | None = checked("arrival_s", value, _ARRIVAL, InvalidRequestError)
    return arrival_s


def check_request_id(value: Any) -> str:
    """A request's name. Raises InvalidRequestError."""
    name: str = checked("request_id", value, _REQUEST_ID, InvalidRequestError)
    return name


def check_salt(value: Any) -> str:
    """A `cache_salt`; "" for None. Raises InvalidRequestError."""
    salt = checked("cache_salt", value, _SALT, InvalidRequestError)
    return salt or ""


_PRIORITY = integer(note="a smaller one goes first")
_ARRIVAL = optional(number(note="seconds, or None for now"))
_REQUEST_ID = text(empty=False, most=MOST_NAME_CHARS)
_SALT = optional(text(most=MOST_NAME_CHARS))


def _parse(prompt: Any, name: str, max_chars: int) -> PromptInput:
    with reading(prompt, name):
        if isinstance(prompt, str):
            return PromptInput(check_prompt_text(prompt, max_chars, name), None)
        if isinstance(prompt, Mapping):
            return _parse_mapping(prompt, name, max_chars)
        return PromptInput(None, _token_ids(prompt, name, max_chars))


def _parse_mapping(prompt: Mapping[Any, Any], name: str, max_chars: int) -> PromptInput:
    keys = list(itertools.islice(prompt, 3))  # one key more than known; a mapping may have no end
    for key in keys:
        if key not in ("prompt", "prompt_token_ids"):
            raise InvalidRequestError(
                f"{name} has a key {shorten(key)}, which nothing here reads: expected 'prompt' or "
                "'prompt_token_ids'"
            )
    if len(keys) != 1:
        raise InvalidRequestError(
            f"{name} has {'both' if keys else 'neither'} of 'prompt' and 'prompt_token_ids': "
            "give one"
        )
    where, value = f"{name}[{keys[0]!r}]", prompt[keys[0]]
    if keys[0] == "prompt":
        return PromptInput(check_prompt_text(value, max_chars, where), None)
    return PromptInput(None, _token_ids(value, where, max_chars))


def _token_ids(value: Any, name: str, max_chars: int) -> list[int]:
    """A copy of a prompt's token ids."""
    if is_array(value) and (value.ndim != 1 or not is_integer(value)):
        raise InvalidRequestError(
            f"{name} is an array of {value.dtype} and shape {tuple(value.shape)}: expected token "
            "ids, integers in one dimension"
        )
    most = "admission.max_prompt_chars"
    ids = as_list(value, name, FORMS, max_chars, f" ({most}): shorten it, or raise that field")
    if not ids:
        raise InvalidRequestError(f"{name} is empty: give at least one token id")
    # Most lists hold plain integers; they are checked without a Python call per id.
    if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) <= _MOST_TOKEN_ID:
        return ids
    check = integer(0, _MOST_TOKEN_ID)
    return [
        checked(f"{name}[{index}]", item, check, InvalidRequestError)
        for index, item in enumerate(ids)
    ]


def _split(prompts: Any, max_chars: int) -> list[tuple[str, Any]]:
    """Each prompt with its name in error messages; the prompts are not checked here."""
    with reading(prompts, "prompts"):
        if isinstance(prompts, (str, Mapping)):
            return [("prompt", prompts)]
        if is_array(prompts) and prompts.ndim == 1 and is_integer(prompts):
            return [("prompt", prompts)]
        many = as_list(
            prompts, "prompts", "a prompt or a list of prompts", max(max_chars, MOST_ITEMS)
        )
        if many and (_is_number(many[0]) or many[0] is None):
            # One prompt of token ids; an item that is not an id is refused later, by its index.
            return [("prompt", many)]
        return [(f"prompts[{index}]", prompt) for index, prompt in enumerate(many)]


def _is_number(value: Any) -> bool:
    """True for a number of any type, even one that is not a valid token id, and for a scalar
    array."""
    return isinstance(value, _Numbers) or (is_array(value) and not value.ndim)
