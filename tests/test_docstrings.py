"""Docstrings name what exists: modules, functions, fields and members of classes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import minserve
from minserve.config import describe

HOUSE = Path(minserve.__file__).parent
FILES = sorted(HOUSE.rglob("*.py"))
ROOTS = {path.stem for path in HOUSE.iterdir() if path.suffix == ".py" or path.is_dir()}
FIELDS = {knob.path for knob in describe()}

QUOTED = re.compile(r"`([^`]+)`")
DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")
FILE_ENDINGS = {"json", "py", "md"}
COMMAND = re.compile(r"python -m (minserve(?:\.\w+)*)")

Members = dict[str, ast.AST]


def name_of(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each string that is a statement: of modules, classes, functions, fields."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.lineno, value.value


def names_in(text: str) -> Iterator[str]:
    """The dotted names of minserve in a docstring, without the leading "minserve."."""
    text = " ".join(text.split())
    for command in COMMAND.findall(text):
        yield command.removeprefix("minserve").removeprefix(".") or "__main__"
    for quoted in QUOTED.findall(text):
        found = DOTTED.match(quoted)
        # The whole of it, or a call or a command that begins with it.
        if found is None or quoted[found.end() :][:1] not in ("", "(", "=", "*"):
            continue
        first, _, rest = found.group().partition(".")
        if rest in FILE_ENDINGS:
            continue
        if first == "minserve":
            yield rest
        elif first in ROOTS:
            yield found.group()


def class_names_in(text: str) -> Iterator[tuple[str, str]]:
    """(class of minserve, its member) of each quoted name such as `RunTrace.totals`."""
    for quoted in QUOTED.findall(" ".join(text.split())):
        found = DOTTED.match(quoted)
        if found is not None and found.group().split(".")[0] in classes():
            name, member, *_ = found.group().split(".")
            yield name, member


@cache
def classes() -> dict[str, set[str]]:
    """Class -> its members; of classes with the same name, all together."""
    found: dict[str, set[str]] = {}
    for path in FILES:
        for name, node in members_of(path).items():
            if isinstance(node, ast.ClassDef):
                found.setdefault(name, set()).update(class_members(path, node))
    return found


def module_path(parts: list[str]) -> Path | None:
    """The file of a module or package, by its names below minserve."""
    base = HOUSE.joinpath(*parts)
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if parts and path.is_file():
            return path
    return None


@cache
def members_of(path: Path) -> Members:
    """Name -> statement of everything at the top of a module."""
    return dict(members(ast.parse(path.read_text("utf-8")).body))


def members(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, node
        elif isinstance(node, ast.If | ast.Try):
            yield from members([*node.body, *node.orelse])
        else:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    yield inner.id, node


def class_members(path: Path, node: ast.ClassDef) -> set[str]:
    """Methods and fields of a class, those of its bases and those set on `self` included."""
    found = {name for name, _ in members(node.body)}
    found |= {
        inner.attr
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
    }
    for base in node.bases:
        origin = defined(path, ast.unparse(base).split("[")[0])
        if origin is not None and isinstance(origin[1], ast.ClassDef):
            found |= class_members(origin[0], origin[1])
    return found


def defined(path: Path, name: str) -> tuple[Path, ast.AST] | None:
    """Where a name of a module is defined, imports followed; None if it does not exist."""
    node = members_of(path).get(name)
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minserve."):
        source = next(a.name for a in node.names if (a.asname or a.name) == name)
        parts = str(node.module).split(".")[1:]
        origin = module_path(parts)
        submodule = module_path([*parts, source])
        if origin is not None and source in members_of(origin):
            return defined(origin, source)
        return (submodule, node) if submodule is not None else None
    return None if node is None else (path, node)


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, something in a module, or a field of the configuration."""
    if name in FIELDS:
        return True
    parts = name.split(".")
    split = next((n for n in range(len(parts), 0, -1) if module_path(parts[:n])), 0)
    path, rest = module_path(parts[:split]), parts[split:]
    if path is None or not rest:
        return path is not None
    found = defined(path, rest[0])
    if found is None or len(rest) == 1:
        return found is not None
    return (
        len(rest) == 2
        and isinstance(found[1], ast.ClassDef)
        and rest[1] in class_members(found[0], found[1])
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_names_in_docstrings_exist(path: Path) -> None:
    dead = [
        f"line {line}: `{name}`"
        for line, text in docstrings(path)
        for name in names_in(text)
        if not resolves(name)
    ]
    dead += [
        f"line {line}: `{name}.{member}`"
        for line, text in docstrings(path)
        for name, member in class_names_in(text)
        if member not in classes()[name]
    ]
    assert not dead, f"{name_of(path)} names what does not exist: {'; '.join(dead)}"


def test_a_dead_name_is_found_and_a_live_one_is_not() -> None:
    text = """See `engine.repeat`, `kernels.counts.least`, `minserve.loading`, `torch.compile`,
    `memory.block_size`, `config.describe()`, `trace.RunTrace.append` and
    `python -m minserve.zoo.lengths_train`; not `kernels.least` or `memory.page_size`."""
    found = list(names_in(text))
    assert "torch.compile" not in found and len(found) == 9
    assert [name for name in found if not resolves(name)] == ["kernels.least", "memory.page_size"]
    named = class_names_in("`RunTrace.totals`, `RunTrace.pages`")
    assert [member for name, member in named if member not in classes()[name]] == ["pages"]
