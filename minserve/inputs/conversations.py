"""Conversations for a chat template: lists of messages, checked and copied.

Knows nothing about templates and tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minserve.inputs.checks import (
    MOST_ITEMS,
    TooLong,
    checked,
    is_unicode,
    read,
    read_mapping,
    shorten,
    text,
)
from minserve.inputs.params import InvalidRequestError
from minserve.inputs.reading import as_list, reading

Message = Mapping[str, Any]
"""One turn of a conversation: "role", "content", and any other key that the model's template
reads."""

_CONVERSATION = "a conversation: a list of messages with 'role' and 'content'"
_MOST_DEPTH = 16  # levels inside a message; a template's tools and tool calls need five


def parse_conversations(
    messages: Any, max_chars: int | None = None
) -> tuple[list[list[Message]], bool]:
    """Copies of one conversation (a list of messages), or of a list of conversations; and whether
    it was a list of conversations. Raises InvalidRequestError.

    A message is a mapping with a "role" and a "content": text, parts, or None. `max_chars` bounds
    the characters of one conversation, before any template renders it.
    """
    given, many = _split_conversations(messages)
    return [_conversation(each, name, max_chars) for name, each in given], many


def parse_each_conversation(
    messages: Any, max_chars: int | None = None
) -> tuple[list[list[Message] | InvalidRequestError], bool]:
    """As `parse_conversations`, but a conversation that is refused is replaced by its error."""
    given, many = _split_conversations(messages)
    found: list[list[Message] | InvalidRequestError] = []
    for name, conversation in given:
        try:
            found.append(_conversation(conversation, name, max_chars))
        except InvalidRequestError as error:
            found.append(error)
    return found, many


def _split_conversations(messages: Any) -> tuple[list[tuple[str, Any]], bool]:
    """Each conversation with its name in error messages, and whether there was a list of them."""
    many = as_list(messages, "messages", f"{_CONVERSATION}, or a list of them", MOST_ITEMS)
    if not many:
        raise InvalidRequestError(f"messages is empty: expected {_CONVERSATION}")
    with reading(many[0], "messages[0]"):
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
        with reading(each, where):
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
    """Counts a conversation's characters against their limit."""

    def __init__(self, max_chars: int | None) -> None:
        self._max_chars = max_chars
        self._spent = 0

    def spend(self, num_chars: int) -> None:
        """Count characters. Raises InvalidRequestError if there are too many."""
        self._spent += num_chars
        if self._max_chars is not None and self._spent > self._max_chars:
            raise InvalidRequestError(
                f"the conversation has more than the {self._max_chars} characters that "
                "admission.max_prompt_chars allows: shorten it, or raise that field"
            )


def _plain(value: Any, name: str, spend: Callable[[int], None], depth: int) -> Any:
    """A copy of a value that JSON can hold; a chat template reads nothing else. The caller's own
    objects may change later; the copy does not."""
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
