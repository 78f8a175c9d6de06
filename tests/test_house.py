"""The sizes of the house: a file is one idea, a function fits a screen, a room fits a glance."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import minserve
import widgets

HOUSE = Path(minserve.__file__).parent
LAB = Path(widgets.__file__).parent
MOST_FILE_LINES = 350
MOST_FUNCTION_LINES = 60
MOST_FILES = 12
EXCEPTIONS: dict[str, str] = {}
"""What may be larger, and why: "room/file.py", "room/file.py::function" or "room" -> the reason."""

FILES = sorted(HOUSE.rglob("*.py"))
LAB_FILES = sorted(LAB.rglob("*.py"))
"""A figure is one list of what is drawn: the length of its function does not count."""
ROOMS = sorted({path.parent for path in (*FILES, *LAB_FILES)})


def name_of(path: Path) -> str:
    house = HOUSE if path.is_relative_to(HOUSE) else LAB.parent
    return path.relative_to(house).as_posix()


def is_triton_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Triton compiles a kernel as one function: there is no call to split it at for free."""
    decorators = [ast.unparse(each).split("(")[0] for each in function.decorator_list]
    return "triton.jit" in decorators


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file but Triton kernels, and its lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_triton_kernel(node):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", [*FILES, *LAB_FILES], ids=name_of)
def test_a_file_is_one_idea(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_FILE_LINES or name_of(path) in EXCEPTIONS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_fits_a_screen(path: Path) -> None:
    long = {
        name: lines
        for name, lines in functions(path)
        if lines > MOST_FUNCTION_LINES and f"{name_of(path)}::{name}" not in EXCEPTIONS
    }
    assert not long


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_a_room_is_seen_at_a_glance(room: Path) -> None:
    files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    if room == HOUSE:  # what stands at the top stands there on purpose, whatever its kind
        files = [path for path in room.iterdir() if path.is_file()]
    assert len(files) <= MOST_FILES or name_of(room) in EXCEPTIONS


def test_an_exception_names_something_that_is_too_large_and_why() -> None:
    for name, reason in EXCEPTIONS.items():
        path, _, function = name.partition("::")
        assert reason and (HOUSE / path).exists(), name
        if function:
            assert dict(functions(HOUSE / path))[function] > MOST_FUNCTION_LINES, name
        elif path.endswith(".py"):
            assert len((HOUSE / path).read_text().splitlines()) > MOST_FILE_LINES, name
        else:
            assert len(list((HOUSE / path).glob("*.py"))) > MOST_FILES + 1, name
