"""The first example of the documentation runs, and prints what stands there: sensible text."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "engine.md").read_text(encoding="utf-8")
CODE, PRINTED = re.findall(r"```(?:python)?\n(.*?)```", PAGE[PAGE.index("## From Python") :], re.S)[
    :2
]
NATIVE = 'EngineConfig(dtype="float32", device="cpu")'
TORCH = """EngineConfig(device="cpu").with_values({"kernels.backend": "torch"})"""


@pytest.mark.parametrize("config", ["EngineConfig()", NATIVE, TORCH])
def test_the_first_example_prints_what_the_page_says(config: str) -> None:
    """Its greedy text is the same in bfloat16 and float32, and with every kind of operators."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(CODE.replace('LLM("zoo/base")', f'LLM("zoo/base", {config})'), {})
    *text, figures = out.getvalue().splitlines()
    assert "\n".join(text).rstrip() == PRINTED.rstrip()
    assert all(float(figure) > 0 for figure in figures.split())


def test_the_first_example_is_python_and_does_not_repeat_itself() -> None:
    ast.parse(PRINTED + "        pass\n")
    lines = [line.strip() for line in PRINTED.splitlines() if line.strip()]
    assert len(set(lines)) == len(lines) > 3


def test_the_command_line_begins_with_the_same_example() -> None:
    prompt = PRINTED[: PRINTED.index(" self.__class__")]
    assert f'minserve generate "{prompt}" --max-tokens 36 --temperature 0' in PAGE
