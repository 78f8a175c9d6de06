"""What a caller may hand in beside `SamplingParams`: prompts, conversations, names and ranks.

Takes every form that users of vLLM type, returns one plain form, copied; the rest is refused in a
sentence that says where it stands. Sizes are checked before anything is tokenized. Knows nothing
about tokenizers and vocabularies.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

from minserve.inputs.checks import (
    MOST_ITEMS,
    MOST_NAME_CHARS,
    TooLong,
    checked,
    integer,
    is_unicode,
    number,
    optional,
    read,
    read_mapping,
    shorten,
    text,
)
from minserve.inputs.params import InvalidRequestError


class TextPrompt(TypedDict):
    """A prompt as vLLM's dictionaries have it: text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt as vLLM's dictionaries have it: token ids."""

    prompt_token_ids: Sequence[int]


Prompt = str | Sequence[int] | TextPrompt | TokensPrompt
"""Text, or token ids (a list, or an integer array of numpy or torch), or a dictionary of either."""

Message = Mapping[str, Any]
"""One turn of a conversation: "role", "content", and what else the model's template reads."""

FORMS = "a string, a list of token ids, or a dictionary with 'prompt' or 'prompt_token_ids'"
_CONVERSATION = "a conversation: a list of messages with 'role' and 'content'"
_MOST_TOKEN_ID = 2**63 - 1
_MOST_DEPTH = 16  # levels inside a message; a template's tools and tool calls need five
_Numbers = (int, float, complex)


@dataclass(frozen=True)
class PromptInput:
    """A prompt in its plain form: exactly one of the two is given."""

    text: str | None
    token_ids: list[int] | None


def parse_prompts(prompts: Any, max_chars: int) -> list[PromptInput]:
    """One prompt or a list of them, in order; an empty list is no prompts. Raises
    InvalidRequestError, naming the first that is none.

    A list of numbers is one prompt, and so is a one-dimensional integer array; a two-dimensional
    one has a prompt per row. `max_chars`: see `parse_prompt`.
    """
    return [_parse(prompt, name, max_chars) for name, prompt in _split(prompts, max_chars)]


def parse_each(prompts: Any, max_chars: int) -> list[PromptInput | InvalidRequestError]:
    """As `parse_prompts`, with the refusal in the place of each prompt that is refused. Raises
    InvalidRequestError only where it cannot be told which prompts there are."""
    found: list[PromptInput | InvalidRequestError] = []
    for name, prompt in _split(prompts, max_chars):
        try:
            found.append(_parse(prompt, name, max_chars))
        except InvalidRequestError as error:
            found.append(error)
    return found


def parse_prompt(prompt: Any, max_chars: int) -> PromptInput:
    """One prompt, in any of its FORMS. Raises InvalidRequestError.

    `max_chars` (`ResolvedConfig.max_prompt_chars`) bounds the characters of a text, and the number
    of a list's ids, of which each stands for at least one character.
    """
    return _parse(prompt, "prompt", max_chars)


def check_prompt_text(prompt: Any, max_chars: int, name: str = "prompt") -> str:
    """A prompt's text, also a rendered conversation's, before it is tokenized. Raises
    InvalidRequestError for one that is too long or is not text."""
    if not issubclass(type(prompt), str):
        raise InvalidRequestError(f"{name}={shorten(prompt)}: expected a string")
    prompt = str.__str__(prompt)  # what a subclass says of itself is not asked
    if len(prompt) > max_chars:
        raise InvalidRequestError(
            f"{name} has {len(prompt)} characters, and admission.max_prompt_chars allows "
            f"{max_chars}: shorten it, or raise that field"
        )
    plain: str = checked(name, prompt, text(most=max_chars), InvalidRequestError)
    return plain


def parse_conversations(
    messages: Any, max_chars: int | None = None
) -> tuple[list[list[Message]], bool]:
    """One conversation (a list of messages), or a list of them, copied; and whether it was a list
    of them. Raises InvalidRequestError.

    A message is a mapping with a "role" and a "content": text, parts, or None. `max_chars` bounds
    the characters of one conversation, before any template renders it.
    """
    given, many = _split_conversations(messages)
    return [_conversation(each, name, max_chars) for name, each in given], many


def parse_each_conversation(
    messages: Any, max_chars: int | None = None
) -> tuple[list[list[Message] | InvalidRequestError], bool]:
    """As `parse_conversations`, with the refusal in the place of each one that is refused."""
    given, many = _split_conversations(messages)
    found: list[list[Message] | InvalidRequestError] = []
    for name, conversation in given:
        try:
            found.append(_conversation(conversation, name, max_chars))
        except InvalidRequestError as error:
            found.append(error)
    return found, many


def as_list(value: Any, name: str, expected: str, most: int, hint: str = "") -> list[Any]:
    """A copy, as a list, of what has a length of at most `most` and an order: a sequence, or an
    array. Raises InvalidRequestError, with `hint` after the sentence where there are too many."""
    with _reading(value, name):
        if isinstance(value, (bytes, bytearray, memoryview)):
            raise InvalidRequestError(
                f"{name} is {type(value).__name__}: decode it to a string first"
            )
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list and not (_is_array(value) and value.ndim):
            raise InvalidRequestError(f"{name}={shorten(value)}: expected {expected}")
        try:
            return read(value, most)
        except TooLong as error:
            raise InvalidRequestError(f"{name} {error}{hint}") from None


@contextmanager
def _reading(value: Any, name: str) -> Iterator[None]:
    """Whatever reading a caller's objects raises is a refusal: their methods may raise anything."""
    try:
        yield
    except InvalidRequestError:
        raise
    except Exception as error:
        raise InvalidRequestError(
            f"{name}={shorten(value)}: reading it raised {type(error).__name__}"
        ) from None


def check_priority(value: Any, name: str = "priority") -> int:
    """A request's rank. Raises InvalidRequestError."""
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
    """A `cache_salt`; None is none. Raises InvalidRequestError."""
    salt = checked("cache_salt", value, _SALT, InvalidRequestError)
    return salt or ""


_PRIORITY = integer(note="a smaller one goes first")
_ARRIVAL = optional(number(note="seconds, or None for now"))
_REQUEST_ID = text(empty=False, most=MOST_NAME_CHARS)
_SALT = optional(text(most=MOST_NAME_CHARS))


def _parse(prompt: Any, name: str, max_chars: int) -> PromptInput:
    with _reading(prompt, name):
        if isinstance(prompt, str):
            return PromptInput(check_prompt_text(prompt, max_chars, name), None)
        if isinstance(prompt, Mapping):
            return _parse_mapping(prompt, name, max_chars)
        return PromptInput(None, _token_ids(prompt, name, max_chars))


def _parse_mapping(prompt: Mapping[Any, Any], name: str, max_chars: int) -> PromptInput:
    keys = list(itertools.islice(prompt, 3))  # two are known; a mapping may have no end
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
    if _is_array(value) and (value.ndim != 1 or not _is_integer(value)):
        raise InvalidRequestError(
            f"{name} is an array of {value.dtype} and shape {tuple(value.shape)}: expected token "
            "ids, integers in one dimension"
        )
    most = "admission.max_prompt_chars"
    ids = as_list(value, name, FORMS, max_chars, f" ({most}): shorten it, or raise that field")
    if not ids:
        raise InvalidRequestError(f"{name} is empty: give at least one token id")
    # Most lists hold plain integers, and are checked without a Python call per id.
    if set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) <= _MOST_TOKEN_ID:
        return ids
    check = integer(0, _MOST_TOKEN_ID)
    return [
        checked(f"{name}[{index}]", item, check, InvalidRequestError)
        for index, item in enumerate(ids)
    ]


def _split(prompts: Any, max_chars: int) -> list[tuple[str, Any]]:
    """Each prompt under its name; none of them is looked into."""
    with _reading(prompts, "prompts"):
        if isinstance(prompts, (str, Mapping)):
            return [("prompt", prompts)]
        if _is_array(prompts) and prompts.ndim == 1 and _is_integer(prompts):
            return [("prompt", prompts)]
        many = as_list(
            prompts, "prompts", "a prompt or a list of prompts", max(max_chars, MOST_ITEMS)
        )
        if many and (_is_number(many[0]) or many[0] is None):
            # One prompt of token ids; whatever is no id in it is refused by its place.
            return [("prompt", many)]
        return [(f"prompts[{index}]", prompt) for index, prompt in enumerate(many)]


def _is_array(value: Any) -> bool:
    """True for an array of numpy or torch; neither is imported for it."""
    return all(hasattr(value, name) for name in ("dtype", "ndim", "shape", "tolist"))


def _is_integer(array: Any) -> bool:
    return "int" in str(array.dtype)


def _is_number(value: Any) -> bool:
    """True for what looks like a token id, be it a wrong one; an array is none, but a scalar is."""
    return isinstance(value, _Numbers) or (_is_array(value) and not value.ndim)


def _split_conversations(messages: Any) -> tuple[list[tuple[str, Any]], bool]:
    """Each conversation under its name, and whether there was a list of them."""
    many = as_list(messages, "messages", f"{_CONVERSATION}, or a list of them", MOST_ITEMS)
    if not many:
        raise InvalidRequestError(f"messages is empty: expected {_CONVERSATION}")
    with _reading(many[0], "messages[0]"):
        if isinstance(many[0], Mapping):
            return [("messages", many)], False
    return [(f"messages[{index}]", each) for index, each in enumerate(many)], True


def _conversation(given: Any, name: str, max_chars: int | None) -> list[Message]:
    messages = as_list(given, name, _CONVERSATION, MOST_ITEMS)
    if not messages:
        raise InvalidRequestError(f"{name} is an empty conversation: give at least one message")
    budget = _Budget(max_chars)
    found = []
    for index, each in enumerate(messages):
        where = f"{name}[{index}]"
        with _reading(each, where):
            found.append(_message(each, where, budget))
    return found


def _message(message: Any, name: str, budget: _Budget) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(
            f"{name}={shorten(message)}: expected a message, a mapping with 'role' and 'content'"
        )
    copy: dict[str, Any] = _plain(message, name, budget.spend, 0)
    role, content = copy.get("role"), copy.get("content")
    if not isinstance(role, str) or not role:
        raise InvalidRequestError(
            f"{name}['role']={shorten(role)}: expected a string such as 'user', 'assistant' or "
            "'system'"
        )
    if "content" not in copy and "tool_calls" not in copy:
        raise InvalidRequestError(f"{name} has no 'content': expected a string")
    is_parts = isinstance(content, list) and all(isinstance(part, dict) for part in content)
    if content is not None and not isinstance(content, str) and not is_parts:
        raise InvalidRequestError(
            f"{name}['content']={shorten(content)}: expected a string, a list of parts such as "
            "{'type': 'text', 'text': '...'}, or None"
        )
    return copy


class _Budget:
    """Characters that a conversation may still have."""

    def __init__(self, max_chars: int | None) -> None:
        self._max_chars = max_chars
        self._spent = 0

    def spend(self, num_chars: int) -> None:
        """Count characters. Raises InvalidRequestError when there are too many."""
        self._spent += num_chars
        if self._max_chars is not None and self._spent > self._max_chars:
            raise InvalidRequestError(
                f"the conversation has more than the {self._max_chars} characters that "
                "admission.max_prompt_chars allows: shorten it, or raise that field"
            )


def _plain(value: Any, name: str, spend: Callable[[int], None], depth: int) -> Any:
    """A copy of what JSON can hold: a template may read nothing else, and nothing changes later."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return int.__pos__(value) if isinstance(value, int) else float.__pos__(value)
    if isinstance(value, str):
        plain = str.__str__(value)
        spend(len(plain))
        if not is_unicode(plain):
            raise InvalidRequestError(
                f"{name}={shorten(value)}: expected text without lone surrogates"
            )
        return plain
    if depth == _MOST_DEPTH:
        raise InvalidRequestError(f"{name} is nested more than {_MOST_DEPTH} levels deep")
    try:
        if isinstance(value, Mapping):
            pairs = read_mapping(value, MOST_ITEMS)
            spend(len(pairs))
            return {
                checked(f"a key of {name}", key, text(), InvalidRequestError): _plain(
                    item, f"{name}[{shorten(key)}]", spend, depth + 1
                )
                for key, item in pairs
            }
        if isinstance(value, (list, tuple)):
            items = read(value, MOST_ITEMS)
            spend(len(items))
            return [
                _plain(item, f"{name}[{index}]", spend, depth + 1)
                for index, item in enumerate(items)
            ]
    except TooLong as error:
        raise InvalidRequestError(f"{name} {error}") from None
    raise InvalidRequestError(
        f"{name}={shorten(value)}: expected text, numbers, lists and mappings, as in JSON"
    )
