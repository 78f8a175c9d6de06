"""`StructuredOutputs`: the form that a request's text must have. Names are those of vLLM.

Types, sizes and nesting are checked here, when the object is made. Whether the form can be compiled
is found out by `sampling.grammar`, which knows the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minserve.inputs.checks import Refused, checked, flag, items, optional, text
from minserve.inputs.errors import InvalidRequestError

MOST_NESTING = 64
"""Most levels of a JSON schema."""
MOST_CHOICES = 4096
KINDS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True)
class StructuredOutputs:
    """The form of a text: exactly one of `json`, `regex`, `choice`, `grammar`, `json_object`.

    The whole text has this form: a regex is not searched for in it. Raises InvalidRequestError.
    """

    json: str | Mapping[str, Any] | None = None
    """A JSON schema, as a mapping or as JSON; kept as JSON. An object's properties are generated
    in the schema's order."""
    regex: str | None = None
    """A regular expression for the whole text: Rust's syntax, without look-around and
    back-references."""
    choice: Sequence[str] | None = None
    """One of these texts."""
    grammar: str | None = None
    """A context-free grammar, in llguidance's form of Lark or in llama.cpp's GBNF."""
    json_object: bool = False
    """Any JSON object."""
    disable_any_whitespace: bool = False
    """For `json` and `json_object`: no space or line break between the parts of the JSON. False:
    one space, or a line break and up to 16 spaces, where the model wants them."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            where = f"StructuredOutputs.{name}"
            value = checked(where, getattr(self, name), check, InvalidRequestError)
            object.__setattr__(self, name, value)
        given = [name for name in KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise InvalidRequestError(
                f"StructuredOutputs has {' and '.join(given) or 'no form'}: give exactly one of "
                f"{', '.join(KINDS)}"
            )
        if self.disable_any_whitespace and self.kind not in ("json", "json_object"):
            raise InvalidRequestError(
                f"StructuredOutputs.disable_any_whitespace is about JSON, and this is "
                f"{self.kind}: leave it out"
            )

    @property
    def kind(self) -> str:
        """The name of the field that is given."""
        return next(name for name in KINDS if getattr(self, name) not in (None, False))

    @property
    def source(self) -> str:
        """The text of the form: schema, expression or grammar; for choices a JSON list."""
        if self.json_object:
            return '{"type": "object"}'
        if self.choice is not None:
            return json.dumps(self.choice, ensure_ascii=False)
        return str(getattr(self, self.kind))


def plain_structure(value: Any) -> StructuredOutputs:
    """A StructuredOutputs whose checks have run. Raises Refused."""
    if not issubclass(type(value), StructuredOutputs):
        raise Refused("StructuredOutputs(...), or None")
    if type(value) is StructuredOutputs and vars(value).keys() == _CHECKS.keys():
        return value
    try:
        values = {name: getattr(value, name) for name in _CHECKS}
    except Exception:
        raise Refused("StructuredOutputs(...), or None") from None
    try:
        return StructuredOutputs(**values)
    except InvalidRequestError as error:
        raise Refused(f"StructuredOutputs(...), or None; {error}") from None


def _schema(value: Any) -> str:
    """The JSON of a schema."""
    expected = "a JSON schema: a mapping, or the JSON of one"
    try:
        if isinstance(value, str):
            value = text(blank=False)(value)
            parsed = json.loads(value)
        else:
            if not isinstance(value, Mapping):
                raise Refused(expected)
            value = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_dict)
            parsed = json.loads(value)
            value = text()(value)
    except RecursionError:
        raise Refused(f"{expected}, of at most {MOST_NESTING} levels", "", None) from None
    except (TypeError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{expected}; this is not JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise Refused(expected)
    if _levels(parsed) > MOST_NESTING:
        raise Refused(f"{expected}, of at most {MOST_NESTING} levels", "", None)
    found: str = value
    return found


def _as_dict(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _levels(value: Any) -> int:
    """How deep the lists and mappings of a parsed JSON document are nested."""
    count, level = 0, [value]
    while level := [each for each in level if isinstance(each, (dict, list))]:
        count += 1
        level = [
            inner for each in level for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return count


def _choices(value: Any) -> tuple[str, ...]:
    choices = tuple(dict.fromkeys(_EACH_CHOICE(value)))
    if not 1 <= len(choices) <= MOST_CHOICES:
        raise Refused(f"1 to {MOST_CHOICES} strings, not {len(choices)}", "", None)
    return choices


_EACH_CHOICE = items(text(empty=False), "a list of strings")
_CHECKS = {
    "json": optional(_schema),
    "regex": optional(text(empty=False)),
    "choice": optional(_choices),
    "grammar": optional(text(blank=False)),
    "json_object": flag,
    "disable_any_whitespace": flag,
}
