"""What a chapter asks its reader: `labs/questions/NN.toml`, read and checked.

Questions, answers and explanations lie there so that a notebook's source gives none of them away.
A chapter names them by key: `Predict(compare, "45b.flip")`, `Estimate("45b.ridge", globals())`,
`Recap("45b")`. Knows nothing about widgets, nor about how an answer is scored.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from minserve.files.json_types import build
from widgets.notebooks.checkout import labs_directory

Asked = TypeVar("Asked")


class QuestionError(ValueError):
    """A file of questions that cannot be used; says which file, which table and which field."""


@dataclass(frozen=True)
class Answer:
    """One answer to choose, and what to say when it is chosen."""

    text: str
    feedback: str
    """Why it is right, or what it misses."""
    correct: bool = False


class Reason(Answer):
    """One of three explanations to choose from."""


def _check_options(where: str, options: Sequence[Answer], enough: bool, many: str) -> None:
    """Raise ValueError unless there are enough, one of them right, and each has its feedback."""
    if not enough or sum(each.correct for each in options) != 1:
        raise ValueError(f"{where}: expected {many}, one of them with correct = true")
    if not all(each.feedback for each in options):
        one = many.split()[-1].removesuffix("s")
        raise ValueError(f"{where}: every {one} needs its feedback")


@dataclass(frozen=True)
class Question:
    """What to predict about one quantity of the comparison."""

    metric: str
    """A metric of the Compare panel: "tpot_p50_s", "peak_kv_bytes"."""
    text: str
    reasons: tuple[Reason, ...]
    largest_factor: float = 100.0

    def __post_init__(self) -> None:
        where = f"the question about {self.metric!r}"
        _check_options(where, self.reasons, len(self.reasons) == 3, "three reasons")
        if not self.largest_factor > 1:
            raise ValueError(f"{where}: largest_factor is {self.largest_factor}, expected above 1")


@dataclass(frozen=True)
class Prediction:
    """`[predict.NAME]`: what to predict before a comparison is seen."""

    questions: tuple[Question, ...]
    key: str = ""


@dataclass(frozen=True)
class Quantity:
    """`[estimate.NAME]`: one number to estimate."""

    text: str
    """May contain names of the chapter in braces, as an f-string does."""
    truth: str = ""
    """A Python expression over the chapter's names; may be left out where the cell gives it."""
    unit: str = ""
    explain: str = ""
    choices: tuple[float, ...] = ()
    """Numbers to pick from instead of typing; the nearest one is right."""
    within: float = 2.0
    key: str = ""

    def __post_init__(self) -> None:
        if not self.within >= 1:
            raise ValueError(
                f"{self.text!r}: within is {self.within}, expected a factor of 1 or more"
            )
        different = set(self.choices)
        if len(different) < len(self.choices) or min(different, default=1) <= 0:
            raise ValueError(f"{self.text!r}: expected different choices above 0: {self.choices}")


@dataclass(frozen=True)
class Choice:
    """One question of the recap."""

    text: str
    answers: tuple[Answer, ...]
    evidence: str = ""
    """A Python expression over the chapter's names after a run: true if the answer is right."""
    evidence_not: tuple[str, ...] = ()
    """Expressions that would be true if a wrong answer were right."""

    def __post_init__(self) -> None:
        _check_options(repr(self.text), self.answers, len(self.answers) >= 2, "several answers")


@dataclass(frozen=True)
class Ledger:
    """What a chapter leaves behind, in one line."""

    invariant: str
    wins: str
    loses: str
    measured: str
    """How it was measured."""

    def words(self) -> dict[str, str]:
        """Column -> text."""
        return {
            "invariant": self.invariant,
            "where it wins": self.wins,
            "where it loses": self.loses,
            "how it was measured": self.measured,
        }


@dataclass(frozen=True)
class Closing:
    """`[recap]`: a chapter's last questions, and its ledger."""

    questions: tuple[Choice, ...]
    ledger: Ledger
    key: str = ""


@dataclass(frozen=True)
class ForClass:
    """`[class]`: one question to answer in writing. Its model answer is in `labs/teaching/`."""

    question: str


@dataclass(frozen=True)
class ChapterQuestions:
    """Everything one chapter asks."""

    recap: Closing
    for_class: ForClass
    predict: Mapping[str, Prediction] = field(default_factory=dict)
    estimate: Mapping[str, Quantity] = field(default_factory=dict)


def load(chapter: str, labs: Path | None = None) -> ChapterQuestions:
    """`labs/questions/CHAPTER.toml`. Raises QuestionError, in a sentence, for what it cannot be."""
    path = (labs or labs_directory()) / "questions" / f"{chapter}.toml"
    name = f"labs/questions/{path.name}"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(entry.stem for entry in path.parent.glob("*.toml"))
        raise QuestionError(f"{name} is missing; there are: {', '.join(known) or 'none'}") from None
    except OSError as error:
        raise QuestionError(f"{name} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise QuestionError(f"{name} is not TOML: {error}") from None
    if "class" in table:  # No name for a field of a class.
        table["for_class"] = table.pop("class")
    try:
        found = build(ChapterQuestions, table, "the file")
    except ValueError as error:
        raise QuestionError(f"{name}: {error}") from None
    for expression in _expressions(found):
        try:
            ast.parse(expression, mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError):  # The last two: too deep.
            shown = expression[:80]
            raise QuestionError(f"{name}: {shown!r} is no Python expression") from None
    replace = dataclasses.replace
    return replace(
        found,
        recap=replace(found.recap, key=f"{chapter}.recap"),
        predict={n: replace(each, key=f"{chapter}.{n}") for n, each in found.predict.items()},
        estimate={n: replace(each, key=f"{chapter}.{n}") for n, each in found.estimate.items()},
    )


def find_prediction(key: str) -> Prediction:
    """`[predict.NAME]` of a chapter, by "NN.NAME"."""
    chapter, name = _split(key)
    return _entry(load(chapter).predict, name, chapter, "predict")


def find_quantity(key: str) -> Quantity:
    """`[estimate.NAME]` of a chapter, by "NN.NAME"."""
    chapter, name = _split(key)
    return _entry(load(chapter).estimate, name, chapter, "estimate")


def fingerprint(asked: Prediction | Quantity | Closing) -> str:
    """Changes with every word of a question, so that an old answer is not taken for a new one's."""
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


class Expression:
    """A Python expression of a question file, with the names that it needs from a chapter.

    The names are taken when this is made: a later cell may use them again for something else.
    Raises NameError, in a sentence, where one is missing.
    """

    def __init__(self, source: str, names: Mapping[str, Any], where: str = "") -> None:
        self.source = source
        needed = free_names(source)
        if missing := sorted(needed - set(names)):
            raise NameError(
                f"{where or 'an expression'} needs {', '.join(missing)}, which the chapter does "
                f"not define before it: {source}"
            )
        self.names = {name: names[name] for name in needed}

    def value(self) -> Any:
        """What it is now."""
        # One mapping for both: a comprehension inside looks its names up among the globals.
        return eval(self.source, dict(self.names))


def free_names(source: str) -> set[str]:
    """The names an expression takes from outside, built-in ones apart."""
    nodes = list(ast.walk(ast.parse(source, mode="eval")))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    return {node.id for node in names} - bound - set(dir(builtins))


def _split(key: str) -> tuple[str, str]:
    chapter, dot, name = key.partition(".")
    if not (chapter and dot and name):
        raise QuestionError(f"{key!r} is no key of a question: expected for example '45b.flip'")
    return chapter, name


def _entry(table: Mapping[str, Asked], name: str, chapter: str, kind: str) -> Asked:
    if name not in table:
        raise QuestionError(
            f"labs/questions/{chapter}.toml has no [{kind}.{name}]; it has: "
            f"{', '.join(f'[{kind}.{each}]' for each in table) or 'none'}"
        )
    return table[name]


def _expressions(found: ChapterQuestions) -> list[str]:
    recap = [each for one in found.recap.questions for each in (one.evidence, *one.evidence_not)]
    return [each for each in (*recap, *(q.truth for q in found.estimate.values())) if each]
