"""What the kernels compile to, on a machine without a GPU: registers, stack, shared memory.

Triton compiles for any target, and its wheel brings NVIDIA's `cuobjdump`. Registers decide how many
programs share a multiprocessor, and a stack means that values spill to memory: both are budgets,
kept beside the tests. `python -m minserve.kernels.triton.resources` prints them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minserve.kernels.triton.activation import BLOCK, silu_and_mul_kernel
from minserve.kernels.triton.attention import ragged_attention_kernel
from minserve.kernels.triton.decode import merge_kernel, split_attention_kernel
from minserve.kernels.triton.norm import add_rms_norm_kernel, rms_norm_kernel, warps_for
from minserve.kernels.triton.ops import SPLIT_STAGES, tile_shape
from minserve.kernels.triton.rotary import rotary_kernel
from minserve.kernels.triton.rotary_store import rotary_store_kernel
from minserve.kernels.triton.store import store_kv_kernel

CAPABILITIES = (80, 90)
"""Compute capabilities 8.0 (A100) and 9.0 (H100, H200)."""


@dataclass(frozen=True)
class Variant:
    """A kernel at one shape, as the operators launch it."""

    name: str
    kernel: Any
    pointers: Mapping[str, str]
    """Pointer argument -> what it points to."""
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2


@dataclass(frozen=True)
class Resources:
    """What one program of a compiled kernel needs."""

    registers: int
    """Per thread, at most 255."""
    stack_bytes: int
    """Per thread: spilled registers."""
    shared_bytes: int


def compile_for(variant: Variant, capability: int) -> Resources:
    """Compile a kernel for compute capability `capability / 10` and read what it needs.

    Raises RuntimeError where the tools of Triton's wheel are missing.
    """
    names = variant.kernel.arg_names
    signature, attributes = {}, {}
    for place, name in enumerate(names):
        if name in variant.constants:
            signature[name] = "constexpr"
        elif name in variant.pointers:
            signature[name] = "*" + variant.pointers[name]
        else:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
        # What a launch would find: aligned pointers, strides and sizes that 16 divides.
        if name in variant.pointers or name.endswith(("_stride", "_dim", "_size")):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs=dict(variant.constants),
        attrs=attributes,
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": variant.num_warps, "num_stages": variant.num_stages},
    )
    registers, stack = _usage(compiled.asm["cubin"])
    return Resources(registers, stack, compiled.metadata.shared)


def _usage(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        raise RuntimeError(f"{tool.name} is not in this Triton's wheel: version 3.7.1 has it")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing about registers: {text[:200]!r}")
    return int(found[1]), int(found[2])


def _attention(head_dim: int) -> list[Variant]:
    same = dict.fromkeys(("q", "keys", "values", "out"), "bf16")
    index = dict.fromkeys(
        ("tables", "query_starts", "kv_lens", "tile_requests", "tile_tokens"), "i32"
    )
    sums = dict.fromkeys(("lse", "parts", "part_lse"), "fp32")
    rows, keys, warps = tile_shape(head_dim, 2)
    shape = {"GROUP": 4, "KEYS": keys, "DIM": head_dim, "WINDOW": False}
    chunk = shape | {"TOKENS": rows // 4, "ROWS": rows, "LSE": False}
    return [
        Variant(
            f"ragged attention, head size {head_dim}",
            ragged_attention_kernel,
            same | index | sums,
            chunk | {"TREE": False, "tree": None},
            warps,
        ),
        Variant(
            f"ragged attention over trees, head size {head_dim}",
            ragged_attention_kernel,
            same | index | sums | {"tree": "i64"},
            chunk | {"TREE": True},
            warps,
        ),
        Variant(
            f"split attention, head size {head_dim}",
            split_attention_kernel,
            same | index | sums,
            shape | {"ROWS": 16},
            num_stages=SPLIT_STAGES,
        ),
    ]


def variants() -> list[Variant]:
    """Every kernel at the shapes of an 8B model in bfloat16, attention at three head sizes."""
    half = "bf16"
    norm = {"x": half, "residual": half, "weight": half, "out": half}
    pages = dict.fromkeys(("k", "v", "keys", "values"), half) | {"slots": "i64"}
    turned = {"x": half, "cos_sin": half, "positions": "i64"}
    turned_and_stored = (
        dict.fromkeys(("heads", "q_norm", "k_norm", "keys", "values"), half)
        | dict.fromkeys(("positions", "slots"), "i64")
        | {"cos_sin": "fp32"}
    )
    heads = {"HEADS": 32, "KV_HEADS": 8, "HALF": 64}
    gated = {"gate_up": half, "out": half}
    joined = {"parts": "fp32", "part_lse": "fp32", "out": half, "lse": "fp32"}
    wide = {"BLOCK": 4096}
    return [
        Variant(
            "rms norm",
            rms_norm_kernel,
            norm,
            wide | {"GATHER": False, "rows": None},
            warps_for(4096),
        ),
        Variant(
            "rms norm of chosen rows",
            rms_norm_kernel,
            norm | {"rows": "i64"},
            wide | {"GATHER": True},
            warps_for(4096),
        ),
        Variant("add, rms norm", add_rms_norm_kernel, norm, wide, warps_for(4096)),
        Variant("silu and multiply", silu_and_mul_kernel, gated, {"BLOCK": BLOCK}),
        Variant("rotary", rotary_kernel, turned, {"HEADS": 32, "HALF": 64}),
        Variant("store keys and values", store_kv_kernel, pages, {"HEADS": 8, "DIM": 128}),
        *(
            Variant(name, rotary_store_kernel, turned_and_stored, heads | {"NORM": norms})
            for name, norms in (("rotary and store", False), ("norms, rotary and store", True))
        ),
        Variant("merge", merge_kernel, joined, {"SPLITS": 32, "DIM": 128, "LSE": False}, 1),
        *(variant for head_dim in (64, 128, 256) for variant in _attention(head_dim)),
    ]


def measure() -> dict[str, dict[str, dict[str, int]]]:
    """Variant -> "sm_80" and "sm_90" -> resources."""
    return {
        variant.name: {
            f"sm_{capability}": asdict(compile_for(variant, capability))
            for capability in CAPABILITIES
        }
        for variant in variants()
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(), indent=2) + "\n")
