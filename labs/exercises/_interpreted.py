"""A reader's `attend` in Triton's interpreter: a process of its own, started by the exercise.

Reads `{"source": ..., "cases": [...]}` on stdin, writes one result per case on stdout. A case is
made from its numbers here and in the exercise alike (`inputs`), so that only outputs travel.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
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


def run(attend_kernel: Any, case: dict[str, Any]) -> dict[str, Any]:
    """What the reader's function made of one case."""
    from minserve.kernels.triton.analysis.traffic import watch

    q, keys, values = inputs(case)
    # What lies behind the last key was never written: a kernel that uses it sees NaN.
    behind = torch.full((case["tile"], case["dim"]), float("nan"))
    out = torch.full((case["dim"],), float("nan"))
    try:
        with watch() as traffic:
            attend_kernel[(1,)](
                q, torch.cat([keys, behind]), torch.cat([values, behind]), out, case["context"],
                case["scale"], KEYS=case["tile"], DIM=case["dim"],
            )  # fmt: skip
    except Exception as error:
        cause = error.__cause__ or error
        return {"error": f"{type(cause).__name__}: {cause}"}
    return {"out": out.tolist(), "bytes": traffic.requested.total}


def main() -> None:
    """Load the source as a module, because Triton reads a kernel's source from its file."""
    asked = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "yours.py"
        path.write_text(DRIVER.format(source=asked["source"]), encoding="utf-8")
        spec = importlib.util.spec_from_file_location("yours", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            results = [{"error": f"{type(error).__name__}: {error}"}] * len(asked["cases"])
        else:
            results = [run(module.attend_kernel, case) for case in asked["cases"]]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
