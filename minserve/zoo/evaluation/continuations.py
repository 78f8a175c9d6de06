"""A model's continuations of function signatures it never saw, and whether they are Python.

Knows how signatures are taken from held-out modules, and how a continuation that stopped in the
middle of a statement is judged; knows nothing about scores.
"""

from __future__ import annotations

import ast
import io
import random
import tokenize
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

#: Prompts -> the texts that follow them.
Writer = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Continuation:
    """A signature, its continuation, and whether the whole statements of both parse."""

    signature: str
    text: str
    parses: bool


def signatures(modules: Iterable[str]) -> list[str]:
    """Every function signature of the held-out `modules`, at the left margin, in source order.

    It ends with its colon; the model writes everything after it, beginning with the line break.
    """
    from minserve.zoo.corpus.source import held_out_path

    found = []
    for module in modules:
        source = held_out_path(module).read_text(encoding="utf-8")
        lines = source.split("\n")
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef):
                continue
            head = lines[node.lineno - 1 : node.body[0].lineno - 1]
            if not head:
                continue  # the body is on the signature's line
            margin = len(head[0]) - len(head[0].lstrip())
            text = "\n".join(line[margin:] for line in head).rstrip()
            if text.endswith(":") and len(text) < 300:
                found.append(text)
    return found


def whole_statements(source: str) -> str | None:
    """`source` up to its last whole statement, or None if its indentation is broken.

    A statement is whole if its line is finished; a header such as `if x:` without a body is not
    a statement yet.
    """
    ends: list[tuple[int, bool]] = []  # last line of each logical line, and whether it is a header
    previous = ""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NEWLINE and token.string:
                ends.append((token.end[0] if token.end[1] else token.end[0] - 1, previous == ":"))
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                previous = token.string
    except IndentationError:
        return None
    except (tokenize.TokenError, SyntaxError):
        pass  # the source stops inside brackets or a string; statements before may be whole
    while ends and ends[-1][1]:
        ends.pop()
    if not ends:
        return ""
    return "\n".join(source.split("\n")[: ends[-1][0]]) + "\n"


def parses(signature: str, text: str) -> bool:
    """Whether `signature` with the whole statements of `text` is Python, with some body."""
    whole = whole_statements(signature + text)
    if not whole or len(whole) <= len(signature) + 1:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            ast.parse(whole)
    except (SyntaxError, ValueError):
        return False
    return True


def continue_signatures(
    write: Writer, modules: Sequence[str], count: int = 200, seed: int = 0
) -> list[Continuation]:
    """Let `write` continue `count` signatures of `modules`, chosen by `seed`, and
    judge the results."""
    prompts = signatures(modules)
    random.Random(seed).shuffle(prompts)
    chosen = prompts[:count]
    return [
        Continuation(signature, text, parses(signature, text))
        for signature, text in zip(chosen, write(chosen), strict=True)
    ]
