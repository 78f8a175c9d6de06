"""The resources of compiled kernels (registers, stack, shared memory), found without a GPU.

Triton compiles for any target, and its wheel includes NVIDIA's `cuobjdump`. Registers decide
how many programs share a multiprocessor, and a stack means that values spill to memory: there
is a budget for both, stored with the tests. `python -m
minserve.kernels.triton.analysis.resources` prints them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minserve.kernels.triton.activation import BLOCK, gate_kernel
from minserve.kernels.triton.attention import ragged_attention_kernel
from minserve.kernels.triton.decode import PARTS, merge_kernel, split_attention_kernel
from minserve.kernels.triton.norm import add_rms_norm_kernel, rms_norm_kernel, warps_for
from minserve.kernels.triton.rotary import rotary_kernel
from minserve.kernels.triton.rotary_store import rotary_store_kernel
from minserve.kernels.triton.sample import LANES, PIVOTS, TILE, WARPS, sample_kernel
from minserve.kernels.triton.store import store_kv_kernel
from minserve.kernels.triton.tuning import Heads, Tile, default_ragged, default_split

CAPABILITIES = (80, 90)
"""Compute capabilities 8.0 (A100) and 9.0 (H100, H200)."""


@dataclass(frozen=True)
class Variant:
    """A kernel at one shape, as the operators launch it."""

    name: str
    kernel: Any
    pointers: Mapping[str, str]
    """Pointer argument -> the type it points to."""
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2


@dataclass(frozen=True)
class Resources:
    """The resources of one program of a compiled kernel."""

    registers: int
    """Per thread, at most 255."""
    stack_bytes: int
    """Bytes per thread, for spilled registers."""
    shared_bytes: int


def compile_for(variant: Variant, capability: int) -> Resources:
    """Compile a kernel for compute capability `capability / 10` and read its resources.

    Raises RuntimeError if the tools of Triton's wheel are missing.
    """
    names = variant.kernel.arg_names
    signature, attributes = {}, {}
    for index, name in enumerate(names):
        if name in variant.constants:
            signature[name] = "constexpr"
        elif name in variant.pointers:
            signature[name] = "*" + variant.pointers[name]
        else:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
        # As in a real launch: aligned pointers, and strides and sizes divisible by 16.
        if name in variant.pointers or name.endswith(("_stride", "_dim", "_size")):
            attributes[(index,)] = [["tt.divisibility", 16]]
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


KINDS = {2: "bf16", 4: "fp32"}


def _size(heads: Heads, softcap: float) -> str:
    capped, wide = ", soft cap" if softcap else "", ", float32" if heads.itemsize == 4 else ""
    return f"head size {heads.dim}{capped}{wide}"


def ragged_variant(heads: Heads, tile: Tile, softcap: float = 0.0) -> Variant:
    """Attention over chunks, launched with this tile. `softcap`: 0 for none."""
    rows = max(tile.rows, triton.next_power_of_2(heads.group))
    return Variant(
        f"ragged attention, {heads}, {tile}",
        ragged_attention_kernel,
        dict.fromkeys(("q", "keys", "values", "out"), KINDS[heads.itemsize])
        | dict.fromkeys(
            ("tables", "query_starts", "kv_lens", "tile_requests", "tile_tokens"), "i32"
        )
        | {"lse": "fp32"},
        {"GROUP": heads.group, "KEYS": tile.keys, "DIM": heads.dim, "WINDOW": False}
        | {"TOKENS": rows // heads.group, "ROWS": rows, "LSE": False, "TREE": False, "tree": None}
        | {"SOFTCAP": softcap},
        tile.warps,
        tile.stages,
    )


def split_variant(heads: Heads, tile: Tile, softcap: float = 0.0) -> Variant:
    """Decode attention, launched with this tile. `softcap`: 0 for none."""
    rows = max(16, triton.next_power_of_2(heads.group))
    return Variant(
        f"split attention, {heads}, {tile}",
        split_attention_kernel,
        dict.fromkeys(("q", "keys", "values"), KINDS[heads.itemsize])
        | dict.fromkeys(("parts", "part_lse"), "fp32")
        | dict.fromkeys(("tables", "kv_lens"), "i32"),
        {"GROUP": heads.group, "KEYS": tile.keys, "DIM": heads.dim, "WINDOW": False, "ROWS": rows}
        | {"SOFTCAP": softcap},
        tile.warps,
        tile.stages,
    )


def _attention(heads: Heads, softcap: float = 0.0) -> list[Variant]:
    tile = default_ragged(heads)
    plain = ragged_variant(heads, tile, softcap)
    return [
        replace(plain, name=f"ragged attention, {_size(heads, softcap)}"),
        Variant(
            f"ragged attention over trees, {_size(heads, softcap)}",
            ragged_attention_kernel,
            {**plain.pointers, "tree": "i64"},
            {name: value for name, value in plain.constants.items() if name != "tree"}
            | {"TREE": True},
            tile.warps,
        ),
    ]


def _split(heads: Heads, softcap: float = 0.0) -> Variant:
    variant = split_variant(heads, default_split(heads, 90), softcap)
    return replace(variant, name=f"split attention, {_size(heads, softcap)}")


def variants() -> list[Variant]:
    """Every kernel at the shapes of an 8B model in bfloat16; attention at several head sizes; and
    in float32 the variants nearest to spilling and those in the table of `occupancy`."""
    gated = {"gate_up": _HALF, "out": _HALF}
    joined = {"parts": "fp32", "part_lse": "fp32", "out": _HALF, "lse": "fp32"}
    return [
        *_norms(),
        *(
            Variant(name, gate_kernel, gated, {"BLOCK": BLOCK, "ACTIVATION": activation})
            for name, activation in (
                ("silu and multiply", "silu"),
                ("gelu and multiply", "gelu_tanh"),
            )
        ),
        *_rotations(),
        Variant("merge", merge_kernel, joined, {"PARTS": PARTS, "DIM": 128, "LSE": False}, 1),
        *(
            Variant(
                name,
                sample_kernel,
                {"logits": _HALF, "params": "fp64", "tokens": "i64", "thresholds": "fp32"},
                {"TILE": TILE, "LANES": LANES, "PIVOTS": PIVOTS, "MIN_P": filters}
                | {"TOP_K": filters, "TOP_P": filters},
                WARPS,
            )
            for name, filters in (("sample", False), ("sample, all filters", True))
        ),
        *(variant for dim in (64, 128, 256) for variant in _attention(Heads(dim, 2, 4))),
        _attention(Heads(256, 4, 4))[0],
        *(_split(Heads(dim, size, 4)) for size in (2, 4) for dim in (16, 32, 64, 128, 256)),
        *(variant for heads in _CAPPED for variant in _attention(heads, _SOFTCAP)),
        *(_split(heads, _SOFTCAP) for heads in _CAPPED),
    ]


_HALF = "bf16"
_CAPPED = (Heads(128, 2, 2), Heads(256, 2, 2), Heads(256, 4, 2))
"""Gemma 2's heads, and the largest of them in float32."""
_SOFTCAP = 50.0


def _norms() -> list[Variant]:
    norm = {"x": _HALF, "residual": _HALF, "weight": _HALF, "out": _HALF}
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
    ]


def _rotations() -> list[Variant]:
    blocks = dict.fromkeys(("k", "v", "keys", "values"), _HALF) | {"slots": "i64"}
    turned = {"x": _HALF, "cos_sin": _HALF, "positions": "i64"}
    turned_and_stored = (
        dict.fromkeys(("heads", "keys", "values"), _HALF)
        | dict.fromkeys(("positions", "slots"), "i64")
        | {"cos_sin": "fp32"}
    )
    heads = {"HEADS": 32, "KV_HEADS": 8, "HALF": 64}
    return [
        Variant("rotary", rotary_kernel, turned, {"HEADS": 32, "HALF": 64}),
        Variant("store keys and values", store_kv_kernel, blocks, {"HEADS": 8, "DIM": 128}),
        Variant(
            "rotary and store",
            rotary_store_kernel,
            turned_and_stored,
            heads | {"NORM": False, "q_norm": None, "k_norm": None},
        ),
        Variant(
            "norms, rotary and store",
            rotary_store_kernel,
            turned_and_stored | {"q_norm": _HALF, "k_norm": _HALF},
            heads | {"NORM": True},
        ),
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
