"""Typed reads of a `config.json`, with errors that name file, key, value and remedy.

Read as JSON, not with transformers, which takes seconds to import. Knows nothing about models.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minserve.files.json_file import FileError, read_json, shorten
from minserve.inputs.wording import with_article
from minserve.models.errors import ModelError

SMALLEST_FACTOR = 1e-6
"""Smallest multiplier, soft cap or scaling: a thousandth of any that a model uses, and its
reciprocal is far from overflow."""
LARGEST_SIZE = 1 << 24
"""Larger than any width, vocabulary or length of a decoder; a product of two still
fits in 63 bits."""
_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class ConfigFile:
    """The keys of one JSON file, with a family's defaults for missing ones."""

    path: Path
    values: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)
    """What the file itself calls a key, if it is no `config.json`."""

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Parse a file. Raises ModelError if it is not a JSON object."""
        try:
            values = read_json(path)
        except FileError as error:
            raise ModelError(str(error)) from None
        if not isinstance(values, dict):
            raise ModelError(
                f"{path} holds {with_article(type(values).__name__)}: expected a JSON object"
            )
        return cls(path, values)

    def without(self, keys: Collection[str]) -> ConfigFile:
        """The same file as if it lacked these keys."""
        return replace(self, values={k: v for k, v in self.values.items() if k not in keys})

    def with_defaults(self, defaults: Mapping[str, Any]) -> ConfigFile:
        """The same file with values for keys that it lacks."""
        return replace(self, values={**defaults, **self.values})

    def error(self, key: str, expected: str, remedy: str, shown: str | None = None) -> ModelError:
        """An error about one key, to be raised by the caller. `shown` replaces a long value."""
        given = shown or ("missing" if key not in self.values else repr(self.values[key]))
        name = self.names.get(key, key)
        return ModelError(
            f"{name} in {self.path} is {shorten(given)}: expected {expected}; {remedy}."
        )

    def get(self, key: str) -> Any:
        """The raw value; None if absent."""
        return self.values.get(key)

    def text(self, key: str) -> str:
        """A string."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.error(key, "a string", "correct the file")
        return value

    def optional_integer(self, key: str, at_least: int = 1) -> int | None:
        """An integer as in `integer`; None if null or absent."""
        return None if self.get(key) is None else self.integer(key, at_least)

    def integer(self, key: str, at_least: int = 1, at_most: int = LARGEST_SIZE) -> int:
        """An integer in a range. Neither `true` nor `8.0` counts as one, as in transformers."""
        value = self.get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not at_least <= value <= at_most
        ):
            raise self.error(
                key, f"an integer between {at_least:,} and {at_most:,}", "correct the file"
            )
        return value

    def optional_number(self, key: str, *, at_least: float, at_most: float) -> float | None:
        """A number as in `number`; None if null or absent."""
        given = self.get(key) is not None
        return self.number(key, at_least=at_least, at_most=at_most) if given else None

    def number(
        self,
        key: str,
        default: float | None = None,
        *,
        above: float = -math.inf,
        at_least: float = -math.inf,
        at_most: float = math.inf,
    ) -> float:
        """A number in a range; `default` if null or absent."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "a number", "correct the file")
        # The JSON reader refuses NaN and infinity.
        if not (above < value and at_least <= value <= at_most):
            low = f"above {above:g}" if above > at_least else f"at least {at_least:g}"
            raise self.error(key, f"a number {low} and at most {at_most:g}", "correct the file")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or False; False if null or absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false", "correct the file")
        return bool(value)

    def tokens(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them, in the file's order without repeats."""
        value = self.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        # Some files write -1 for "none".
        if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
            raise self.error(key, "a token id or a list of token ids", "correct the file")
        return tuple(dict.fromkeys(token for token in ids if token >= 0))

    def dtype(self) -> str | None:
        """The checkpoint's number format, under its key in transformers 5 or the older one; None if
        the file does not say."""
        key = "dtype" if self.get("dtype") is not None else "torch_dtype"
        value = self.get(key)
        if value is None:
            return None
        name = str(value).removeprefix("torch.")
        if name not in _DTYPES:
            raise self.error(key, f"one of {', '.join(_DTYPES)}", "load an unquantized checkpoint")
        return name
