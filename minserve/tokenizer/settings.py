"""The JSON files beside a tokenizer, type-checked: roles, added tokens, chat templates.

Knows nothing about the tokenizers library.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minserve.files.json_file import FileError, read_json, read_text, shorten
from minserve.inputs.wording import with_article

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
MAX_TEMPLATE_BYTES = 256 << 10
"""Ten times the longest chat template we know."""
_MAX_SETTINGS_BYTES = 16 << 20
"""Some files repeat a thousand added tokens."""


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded. The message says which file, and what to do."""


@dataclass(frozen=True)
class Settings:
    """`tokenizer_config.json`, completed by `special_tokens_map.json`."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> Settings:
        """Both files of a directory; either may be missing. Raises TokenizerError."""
        path = directory / "tokenizer_config.json"
        values = read_object(path)
        if "added_tokens_decoder" not in values:
            # Newer configuration files repeat the map's content, and may contradict it.
            values.update(read_object(directory / "special_tokens_map.json"))
        return cls(path, values)

    def _error(self, key: str, value: Any, expected: str) -> TokenizerError:
        return TokenizerError(
            f"{key} in {self.path} is {shorten(repr(value))}: expected {expected}; correct the "
            "file."
        )

    def flag(self, key: str) -> bool | None:
        """True or False; None if null or absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return value

    def tokenizer_class(self) -> str:
        """The class in transformers, without "Fast"; "" if the file does not say. It is only
        compared with known names; no code is imported because of it."""
        value = self.values.get("tokenizer_class")
        if value is not None and not isinstance(value, str):
            raise self._error("tokenizer_class", value, "a name")
        return (value or "").removesuffix("Fast")

    def roles(self) -> dict[str, str | dict[str, Any]]:
        """The token of each role."""
        return {
            name: self._token(name, self.values[name])
            for name in SPECIAL_NAMES
            if self.values.get(name)
        }

    def special_tokens(self) -> dict[str, str]:
        """The text of each role's token."""
        return {name: content(entry) for name, entry in self.roles().items()}

    def added_tokens(self) -> list[str | dict[str, Any]]:
        """Tokens listed by id, in the order of their ids."""
        key = "added_tokens_decoder"
        listed = self.values.get(key) or {}
        if not isinstance(listed, dict) or not all(
            name.isascii() and name.isdigit() and len(name) < 12 for name in listed
        ):
            raise self._error(key, listed, "an object of tokens by their ids")
        return [self._token(f"{key}[{name!r}]", listed[name]) for name in sorted(listed, key=int)]

    def extra_tokens(self) -> list[str | dict[str, Any]]:
        """Special tokens without a role, or with a role that only this model has."""
        for key in ("extra_special_tokens", "additional_special_tokens"):
            extra = self.values.get(key)
            if not extra:
                continue
            if not isinstance(extra, (dict, list)):
                raise self._error(key, extra, "a list of tokens")
            entries = extra.values() if isinstance(extra, dict) else extra
            return [self._token(key, entry) for entry in entries if entry]
        return []

    def _token(self, key: str, entry: Any) -> str | dict[str, Any]:
        text = entry.get("content") if isinstance(entry, dict) else entry
        flags = entry if isinstance(entry, dict) else {}
        if (
            not isinstance(text, str)
            or not text
            or not all(isinstance(flags.get(flag, False), bool) for flag in TOKEN_FLAGS)
        ):
            raise self._error(key, entry, "a token: its text, or an object with its content")
        token: str | dict[str, Any] = entry
        return token

    def chat_templates(self) -> dict[str, str]:
        """Templates by name: from separate files, or from tokenizer_config.json."""
        templates: dict[str, str] = {}
        listed = self.values.get("chat_template")
        if isinstance(listed, str):
            templates["default"] = listed
        elif listed is not None:
            for entry in listed if isinstance(listed, list) else [listed]:
                name, template = (
                    (entry.get("name"), entry.get("template"))
                    if isinstance(entry, dict)
                    else (None, None)
                )
                if not isinstance(name, str) or not isinstance(template, str):
                    raise self._error(
                        "chat_template", listed, "a template, or a list with name and template"
                    )
                templates[name] = template
        directory = self.path.parent
        for file in sorted((directory / "additional_chat_templates").glob("*.jinja"))[:100]:
            templates[file.stem] = _template(file)
        if os.path.lexists(directory / "chat_template.jinja"):
            templates["default"] = _template(directory / "chat_template.jinja")
        return templates


def content(entry: str | dict[str, Any]) -> str:
    """The text of a token, in either form."""
    return entry if isinstance(entry, str) else str(entry["content"])


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing. Raises TokenizerError."""
    if not os.path.lexists(path):
        return {}
    try:
        values = read_json(path, max_bytes=_MAX_SETTINGS_BYTES)
    except FileError as error:
        raise TokenizerError(str(error)) from None
    if not isinstance(values, dict):
        raise TokenizerError(
            f"{path} holds {with_article(type(values).__name__)}: expected a JSON object."
        )
    return values


def _template(path: Path) -> str:
    try:
        return read_text(path, max_bytes=MAX_TEMPLATE_BYTES, what="a chat template")
    except FileError as error:
        raise TokenizerError(str(error)) from None
