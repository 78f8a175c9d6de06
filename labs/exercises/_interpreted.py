"""A reader's `attend` in Triton's interpreter: a process of its own, started by the exercise.

Reads `{"source": ..., "cases": [...], "limit_s": ...}` on stdin, writes one result per case on
stdout. A case is made from its numbers here and in the exercise alike (`inputs`), so that only
outputs travel.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

DRIVER = """
import triton
import triton.language as tl


@triton.jit
{source}


@triton.jit
def attend_kernel(q, keys, values, out, context, scale, KEYS: tl.constexpr, DIM: tl.constexpr):
    column = tl.arange(0, DIM)
    result = attend(tl.load(q + column), keys, values, context, scale, KEYS, DIM)
    tl.store(out + column, result)
"""
FIRST_LINE = 1 + DRIVER[: DRIVER.index("{source}")].count("\n")


def inputs(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query `[dim]`, keys and values `[context, dim]`, float32: `size` scales the scores, and the
    tile `peak` has the largest ones (None: wherever they fall)."""
    generator = torch.Generator().manual_seed(case["seed"])
    dim, context = case["dim"], case["context"]
    q = torch.randn(dim, generator=generator)
    keys, values = (torch.randn(context, dim, generator=generator) for _ in range(2))
    if case["peak"] is not None:
        first = case["peak"] * case["tile"]
        keys[first : first + case["tile"]] += 2.0 * q / q.norm()
    return q, keys * case["size"], values


class Late(BaseException):
    """The case took longer than it may. No Exception, so that nothing in between swallows it."""


def _late(number: int, frame: Any) -> None:
    raise Late


@contextmanager
def lanes() -> Iterator[list[int]]:
    """Inside `watch`: the lanes of every load, masked ones too."""
    from triton.runtime import interpreter

    builder, found = interpreter.interpreter_builder, []
    counted = builder.create_masked_load

    def load(ptrs: Any, *rest: Any, **named: Any) -> Any:
        found.append(int(ptrs.data.size))
        return counted(ptrs, *rest, **named)

    builder.create_masked_load = load
    try:
        yield found
    finally:
        builder.create_masked_load = counted


def run(attend_kernel: Any, case: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """What the reader's function made of one case."""
    from minserve.kernels.triton.analysis.traffic import watch

    q, keys, values = inputs(case)
    # What lies behind the last key was never written: a kernel that uses it sees NaN.
    behind = torch.full((case["tile"], case["dim"]), float("nan"))
    out = torch.full((case["dim"],), float("nan"))
    # Processor time: a busy machine does not fail a right kernel.
    signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        with watch() as traffic, lanes() as loads:
            attend_kernel[(1,)](
                q, torch.cat([keys, behind]), torch.cat([values, behind]), out, case["context"],
                case["scale"], KEYS=case["tile"], DIM=case["dim"],
            )  # fmt: skip
    except Late:
        return {"late": limit_s}
    except Exception as error:
        return {"error": told(error)}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    # The first load is the query's.
    return {
        "out": out.tolist(),
        "bytes": traffic.requested.total,
        "widest": max(loads[1:], default=0),
        "loads": len(loads) - 1,
    }


def told(error: BaseException) -> dict[str, Any]:
    """An error in words, with its line in the reader's source (from 1; 0 where it is not there)."""
    line, cause = 0, error
    while True:
        for frame, number in traceback.walk_tb(cause.__traceback__):
            if frame.f_code.co_filename.endswith("yours.py") and frame.f_code.co_name == "attend":
                line = number - FIRST_LINE + 1
        if cause.__cause__ is None:
            break
        cause = cause.__cause__
    return {"text": in_words(cause), "line": line}


_INDEX = (
    "a block of numbers has no elements to take out by index: use it whole, or add an axis with "
    "`[:, None]` or `[None, :]`"
)
_SENTENCES: tuple[tuple[str, str], ...] = (
    (r"cannot convert .* of type <class '(?:\w+\.)*(\w+)'> to tensor",
     r"it returned or used a `\1`, and a kernel needs a block of numbers, as `tl.zeros` makes one"),
    (r"module 'triton.language' has no attribute '(\w+)'", r"`tl` has no `\1`"),
    (r"'tensor' object has no attribute '(\w+)'", r"a block of numbers has no `\1`"),
    (r"name '(\w+)' is not defined",
     r"there is no `\1`; a kernel has its arguments, its own variables and `tl`"),
    (r"'str' object has no attribute 'type'", "a text and a block of numbers do not go together"),
    (r"object of type 'tensor' has no len\(\)",
     "a block of numbers has no `len()`: its size is KEYS or DIM"),
    (r"unsupported tensor index", _INDEX),
    (r"arange's arguments must be of type tl.constexpr",
     "`tl.arange` needs limits that are known before the kernel runs: numbers, KEYS or DIM"),
    (r"arange's range must be a power of 2|must be a power of 2",
     "the size of a block must be a power of two, as KEYS and DIM are"),
    (r"input and other must have equal ranks",
     "`tl.dot` multiplies two blocks with two axes each, and one of these has another number"),
    (r"unsupported operand type\(s\) for @",
     "blocks are not multiplied with `@`: multiply number by number, then `tl.sum`"),
    (r"axis (\S+) out of bounds for shape (\[.*\])",
     r"there is no axis \1 in a block with the axes \2"),
    (r"incompatible dimensions at index \d+: (\d+) and (\d+)",
     r"blocks of \1 and of \2 numbers do not fit together: `x[:, None]` lays x down the rows, "
     r"`x[None, :]` along the columns"),
    (r"(\w+)\(\) got an unexpected keyword argument '(\w+)'", r"`\1` has no argument `\2`"),
    (r"(\w+)\(\) missing \d+ required positional arguments?: (.*)",
     r"`\1` was called without \2"),
)  # fmt: skip
"""What Triton says -> what it means for a reader who meets a kernel for the first time."""


def in_words(cause: BaseException) -> str:
    """A sentence for an error; one that is not known is named with its type."""
    said = re.sub(r"'?constexpr\[(\w+)\]'?", r"\1", str(cause))
    if said == "'int' object is not iterable":
        # Triton expects a list of axes, from an index as from a shape.
        frames = traceback.extract_tb(cause.__traceback__)
        indexed = any(frame.name == "__getitem__" for frame in frames)
        return _INDEX if indexed else "a shape is a list: `[DIM]`, not `DIM`"
    for pattern, sentence in _SENTENCES:
        if found := re.search(pattern, said.replace("\n", " ")):
            text = found.expand(sentence).replace("'", "`")
            break
    else:
        return f"{_article(cause)} {type(cause).__name__}: {said}"
    if isinstance(cause, AttributeError) and cause.name:
        close = difflib.get_close_matches(cause.name, dir(cause.obj), n=1)
        text += f"; did you mean `{close[0]}`?" if close else ""
    return text


def _article(cause: BaseException) -> str:
    return "an" if type(cause).__name__[0] in "AEIOU" else "a"


def main() -> None:
    """Load the source as a module, because Triton reads a kernel's source from its file."""
    asked = json.load(sys.stdin)
    # What the reader's code prints is no part of the answer.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    cases = asked["cases"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "yours.py"
        path.write_text(DRIVER.format(source=asked["source"]), encoding="utf-8")
        spec = importlib.util.spec_from_file_location("yours", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        results: list[dict[str, Any]] = []
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            results = [{"error": told(error)}] * len(cases)
        for case in cases[len(results) :]:
            results.append(run(module.attend_kernel, case, asked["limit_s"]))
            if "late" in results[-1]:  # All others would take as long.
                results += [results[-1]] * (len(cases) - len(results))
                break
    json.dump(results, answer)
    answer.close()


if __name__ == "__main__":
    main()
