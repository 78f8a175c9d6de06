"""A workload as data: a kind, its numbers, and where it has them the prompts or requests.

Checks every number against the kind's own bounds, so that no text from elsewhere can ask for more
than a machine can hold. Knows no engine; `kinds` says what the kinds are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from minserve.bench.compare.errors import SetupError
from minserve.bench.workloads.traffic import Traffic

Value = int | float | str
Encode = Callable[[str], Sequence[int]]
"""Text to token ids."""
Row = tuple[float, int, int, int, int, int]
"""(gap in mean gaps, prompt tokens, output tokens, priority, request whose prompt it begins like or
-1, how many tokens of it)."""
MOST_PROMPTS, MOST_CHARS = 200, 4000
MOST_ROWS = 2000
MOST_TOKENS = 4_000_000
"""Tokens of all prompts of a workload together."""
LEAST_RATE = 1e-6
"""Requests per second: one in twelve days. Far below it, no step is seen in a clock's seconds."""


@dataclass(frozen=True)
class Parameter:
    """A number of a workload, or a choice. Whole where both bounds are."""

    name: str
    default: Value
    low: float = 0.0
    high: float = 0.0
    label: str = ""
    unit: str = ""
    choices: tuple[str, ...] = ()
    text: bool = False
    """Free text: a file."""

    @property
    def whole(self) -> bool:
        """True for a whole number."""
        return isinstance(self.default, int)

    def check(self, value: object) -> Value:
        """The value as its plain type. Raises SetupError."""
        if self.text:
            if not isinstance(value, str) or len(value) > 400 or not value.isprintable():
                raise SetupError(f"workload {self.name}: expected the path of a file")
            return value
        if self.choices:
            if value not in self.choices:
                shown = str(value)[:40]
                raise SetupError(
                    f"workload {self.name}={shown}: expected one of {', '.join(self.choices)}"
                )
            return str(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = "" if "," not in str(value) else ", with a point before decimals, such as 0.5"
            raise SetupError(
                f"workload {self.name}: expected a number, not {str(value)[:40]!r}{hint}"
            )
        if not self.low <= value <= self.high or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            raise SetupError(
                f"workload {self.name}={_plain(value)}: expected {kind} from {self.span}"
            )
        return int(value) if self.whole else float(value)

    @property
    def span(self) -> str:
        """Its bounds in words."""
        return f"{_plain(self.low)} to {_plain(self.high)}"


def _plain(value: float) -> str:
    """A number with all its digits, where it has not too many to be read."""
    whole = math.isfinite(value) and value == int(value) and abs(value) < 1e15
    return f"{int(value):,}" if whole else f"{value:g}"


@dataclass(frozen=True)
class Sources:
    """What a workload is drawn with: of the model, not of the workload."""

    vocab_size: int = 4000
    encode: Encode | None = None
    """Of the model's tokenizer; None: prompts cannot be turned into tokens."""
    most: int = 1 << 30
    """Longest request, in tokens."""


Make = Callable[["Workload", Sources], Traffic]


@dataclass(frozen=True)
class Kind:
    """One kind of workload: its name for people, its parameters, and what draws it."""

    name: str
    label: str
    doc: str
    parameters: tuple[Parameter, ...]
    make: Make


KINDS: dict[str, Kind] = {}
"""By name; `kinds` fills it."""


@dataclass(frozen=True)
class Workload:
    """A kind and its values; what `values` leaves out has its default."""

    kind: str = "shared-prefix"
    values: Mapping[str, Value] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    """Of kind "prompts"."""
    rows: tuple[Row, ...] = ()
    """Of kind "listed"."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SetupError(
                f"there is no workload {self.kind[:40]!r}: choose one of {', '.join(KINDS)}"
            )
        known = {parameter.name: parameter for parameter in KINDS[self.kind].parameters}
        for name in self.values:
            if name not in known:
                raise SetupError(
                    f"the workload {self.kind!r} has no {name[:40]!r}; it has: {', '.join(known)}"
                )
        checked = {name: known[name].check(value) for name, value in self.values.items()}
        kept = {name: value for name, value in checked.items() if value != known[name].default}
        object.__setattr__(self, "values", kept)
        _check_prompts(self.prompts)
        _check_rows(self.rows)

    def get(self, name: str) -> Value:
        """The value of a parameter."""
        if name in self.values:
            return self.values[name]
        return next(p.default for p in KINDS[self.kind].parameters if p.name == name)

    def whole(self, name: str) -> int:
        """The value of a whole number."""
        return int(self.get(name))

    def number(self, name: str) -> float:
        """The value of a number."""
        return float(self.get(name))

    def traffic(self, sources: Sources) -> Traffic:
        """The requests. Those longer than `sources.most` are left out, and the name says so.

        Raises SetupError where nothing is left, or where there are more tokens than fit, or where
        requests come hardly ever.
        """
        made = KINDS[self.kind].make(self, sources)
        if made.rate_per_s is not None and made.rate_per_s < LEAST_RATE:
            raise SetupError(
                f"workload rate={made.rate_per_s:g}: expected at least {LEAST_RATE:g} requests per "
                "second, or 0 for all at the start"
            )
        total = sum(len(each.prompt_token_ids) for each in made.requests)
        if total > MOST_TOKENS:
            raise SetupError(
                f"this workload has {total:,} prompt tokens, and {MOST_TOKENS:,} are allowed: "
                "choose fewer or shorter requests"
            )
        return _fitting(made, sources.most)


def _fitting(made: Traffic, most: int) -> Traffic:
    kept, gap = [], 0.0
    for each in made.requests:
        gap += each.gap
        if len(each.prompt_token_ids) + (each.params.max_tokens or 0) <= most:
            kept.append(replace(each, gap=gap))
            gap = 0.0
    left_out = len(made.requests) - len(kept)
    if not kept:
        raise SetupError(
            f"none of the {len(made.requests)} requests fits into the {most:,} tokens that this "
            "model and these configurations allow: choose shorter prompts and answers"
        )
    if not left_out:
        return made
    name = f"{made.name} ({left_out} of {len(made.requests)} longer than {most:,} tokens, left out)"
    return replace(made, name=name, requests=tuple(kept))


def _check_prompts(prompts: Sequence[str]) -> None:
    if len(prompts) > MOST_PROMPTS:
        raise SetupError(
            f"your own prompts: {len(prompts):,} lines, expected at most {MOST_PROMPTS}"
        )
    for number, prompt in enumerate(prompts, start=1):
        if not 0 < len(prompt) <= MOST_CHARS:
            raise SetupError(
                f"your own prompts: prompt {number} has {len(prompt):,} characters, expected 1 to "
                f"{MOST_CHARS:,}"
            )
    if any("\n" in prompt or "\0" in prompt for prompt in prompts):
        raise SetupError("your own prompts: expected one prompt per line")


def _check_rows(rows: Sequence[Row]) -> None:
    if len(rows) > MOST_ROWS:
        raise SetupError(f"a list of {len(rows):,} requests: expected at most {MOST_ROWS:,}")
    for number, (gap, prompt, output, priority, like, shared) in enumerate(rows):
        if not (
            0 <= gap <= 1e6
            and 1 <= prompt <= MOST_TOKENS
            and 1 <= output <= 1_000_000
            and abs(priority) <= 1 << 30
            and -1 <= like < number
            and 0 <= shared <= prompt
            and (like < 0 or shared <= rows[like][1])
        ):
            raise SetupError(f"request {number} of the list does not add up")
    if sum(row[1] for row in rows) > MOST_TOKENS:
        raise SetupError(f"a list of more than {MOST_TOKENS:,} prompt tokens: expected fewer")
