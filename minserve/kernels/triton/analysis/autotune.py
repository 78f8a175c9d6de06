"""Finds the tiles with which attention is fastest on this device: tried once, kept on disk.

Candidates are compiled, those that spill or do not fit are dropped, and the others are timed on one
decode and one prefill. Separate from the kernels, which stay plain functions that the interpreter
can run. A result is valid for one device, one version of Triton and one source text of the kernels;
if one of them changes, the search runs again. Results of different tiles differ only by rounding.
Windows, trees and soft caps hardly change what a tile needs: layers with them take the tile found
without.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
from torch import Tensor

from minserve.files import cache_dir
from minserve.files.cache_dir import cache_directory
from minserve.files.json_types import build
from minserve.hardware.current import on
from minserve.kernels.base import Scores
from minserve.kernels.occupancy import programs_per_multiprocessor
from minserve.kernels.triton import attention, decode
from minserve.kernels.triton.analysis.resources import (
    Resources,
    Variant,
    compile_for,
    ragged_variant,
    split_variant,
)
from minserve.kernels.triton.ops import TritonOps, capability_of
from minserve.kernels.triton.tuning import Heads, Tile, Tuning, default_ragged, default_split
from minserve.spec import ModelSpec

VERSION = 1
MOST = 64
"""Programs of a multiprocessor at once: more than any GPU can run."""
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}
"""The most that one program may use, by capability times ten (CUDA C programming guide)."""

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes."""
Compiler = Callable[[Variant, int], Resources]


@dataclass(frozen=True)
class Workload:
    """The shapes that candidates are timed on."""

    requests: int = 32
    context: int = 2048
    block_size: int = 16


def cuda_timer(call: Callable[[], object], rounds: int = 20) -> float:
    """The median of several calls, between CUDA events; the first call compiles and is not
    counted."""
    call()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, stop in marks:
        start.record()
        call()
        stop.record()
    torch.cuda.synchronize()
    milliseconds: list[float] = [start.elapsed_time(stop) for start, stop in marks]
    return median(milliseconds) / 1e3


def ragged_candidates(heads: Heads) -> Iterator[Tile]:
    """The default, and other tiles worth trying."""
    default = default_ragged(heads)
    yield default
    for rows, keys, warps, stages in itertools.product(
        (32, 64, 128), (32, 64, 128), (4, 8), (2, 3)
    ):
        tile = Tile(rows, keys, warps, stages)
        if tile != default and rows >= heads.group:
            yield tile


def split_candidates(heads: Heads, capability: int) -> Iterator[Tile]:
    """The default, and other tiles worth trying; how many programs run at once is not known yet."""
    default = default_split(heads, capability)
    yield default
    for keys, warps, stages in itertools.product((16, 32, 64, 128), (2, 4, 8), (2, 3, 4)):
        if (keys, warps, stages) != (default.keys, default.warps, default.stages):
            yield Tile(0, keys, warps, stages)


def tune(
    heads: Heads,
    num_kv_heads: int,
    dtype: torch.dtype,
    device: torch.device,
    timer: Timer = cuda_timer,
    compiler: Compiler = compile_for,
    workload: Workload | None = None,
) -> Tuning:
    """The fastest tiles for these heads: from disk if they are known, otherwise by timing.

    If the directory cannot be written, the search is repeated the next time.
    """
    path = cache_path(heads, num_kv_heads, dtype, device)
    capability = capability_of(device)
    known = _read(path, heads, capability)
    if known is not None:
        return Tuning({heads: known[0]}, {heads: known[1]})
    trial = _Trial(heads, num_kv_heads, dtype, device, workload or Workload())
    ragged = _fastest(
        (
            tile
            for tile in ragged_candidates(heads)
            if _fits(compiler, ragged_variant(heads, tile), capability) is not None
        ),
        lambda tile: timer(lambda: trial.prefill(Tuning(ragged={heads: tile}))),
        default_ragged(heads),
    )
    split = _fastest(
        _resident(heads, capability, compiler),
        lambda tile: timer(lambda: trial.decode(Tuning(split={heads: tile}))),
        default_split(heads, capability),
    )
    _write(path, ragged, split)
    return Tuning({heads: ragged}, {heads: split})


def head_shapes(spec: ModelSpec, dtype: torch.dtype) -> dict[Heads, int]:
    """Every shape of heads in a model -> the number of KV heads of the first layer
    with that shape."""
    found: dict[Heads, int] = {}
    for num_heads, num_kv_heads, head_dim in dict.fromkeys(
        each.mixer.heads for each in spec.layers
    ):
        dim = max(16, triton.next_power_of_2(head_dim))
        heads = Heads(dim, dtype.itemsize, num_heads // num_kv_heads)
        found.setdefault(heads, num_kv_heads)
    return found


def is_tuned(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> bool:
    """True if `tune_model` would find everything on disk, so that it takes no time."""
    shapes = head_shapes(spec, dtype).items()
    capability = capability_of(device)
    return all(
        _read(cache_path(heads, kv_heads, dtype, device), heads, capability) is not None
        for heads, kv_heads in shapes
    )


def tune_model(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Tuning:
    """`tune` for every shape of heads in a model."""
    ragged: dict[Heads, Tile] = {}
    split: dict[Heads, Tile] = {}
    with on(device):
        for heads, num_kv_heads in head_shapes(spec, dtype).items():
            found = tune(heads, num_kv_heads, dtype, device)
            ragged |= found.ragged
            split |= found.split
    if device.type == "cuda":
        # Free the memory of the trials for the page pool.
        torch.cuda.empty_cache()
    return Tuning(ragged, split)


def _resident(heads: Heads, capability: int, compiler: Compiler) -> Iterator[Tile]:
    """Split candidates that fit, with the number of their programs that run at once."""
    for tile in split_candidates(heads, capability):
        needed = _fits(compiler, split_variant(heads, tile), capability)
        if needed is not None:
            programs = programs_per_multiprocessor(
                needed.registers, needed.shared_bytes, tile.warps, capability
            )
            yield Tile(0, tile.keys, tile.warps, tile.stages, programs)


def _fits(compiler: Compiler, variant: Variant, capability: int) -> Resources | None:
    """The resources of a variant, if nothing spills and the device has that much shared
    memory; else None."""
    try:
        needed = compiler(variant, capability)
    except RuntimeError:  # Triton's compiler fails for some tiles.
        return None
    known = [each for each in SHARED_BYTES if each <= capability]
    most = SHARED_BYTES[max(known, default=80)]
    return needed if not needed.stack_bytes and needed.shared_bytes <= most else None


def _fastest(tiles: Iterator[Tile], seconds: Callable[[Tile], float], default: Tile) -> Tile:
    times = {tile: seconds(tile) for tile in tiles}
    return min(times, key=times.__getitem__) if times else default


class _Trial:
    """One decode and one prefill over pages in random order."""

    def __init__(
        self,
        heads: Heads,
        num_kv_heads: int,
        dtype: torch.dtype,
        device: torch.device,
        work: Workload,
    ) -> None:
        blocks = -(-work.context // work.block_size)
        self._scores = Scores(heads.dim**-0.5)
        self._work = work
        shape = (work.requests * blocks, num_kv_heads, work.block_size, heads.dim)
        self._keys = torch.randn(shape, dtype=dtype, device=device)
        self._values = torch.randn_like(self._keys)
        order = torch.randperm(shape[0], device=device).to(torch.int32)
        self._tables = order.view(work.requests, blocks)
        num_heads = num_kv_heads * heads.group
        rows = max(work.requests, work.context)
        self._q = torch.randn(rows, num_heads, heads.dim, dtype=dtype, device=device)
        self._lens = torch.full((work.requests,), work.context, dtype=torch.int32, device=device)
        self._starts = torch.tensor([0, work.context], dtype=torch.int32, device=device)

    def decode(self, tuning: Tuning) -> Tensor:
        """One row of every request."""
        planned = TritonOps(tuning=tuning).plan_decode(self._tables, self._lens, self._work.context)
        return planned(self._q[: self._work.requests], self._keys, self._values, self._scores)[0]

    def prefill(self, tuning: Tuning) -> Tensor:
        """All rows of one request."""
        context = (self._work.context,)
        planned = TritonOps(tuning=tuning).plan_attention(
            self._tables[:1], self._starts, self._lens[:1], context, context
        )
        return planned(self._q[: context[0]], self._keys, self._values, self._scores)[0]


def source_hash() -> str:
    """A digest of the kernels' text."""
    digest = hashlib.sha256()
    for module in (attention, decode):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def cache_path(heads: Heads, num_kv_heads: int, dtype: torch.dtype, device: torch.device) -> Path:
    """The file for this device, Triton, kernels and shape."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    parts = (name, triton.__version__, source_hash(), str(dtype), str(num_kv_heads), str(heads))
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
    return cache_directory() / f"attention-{digest}.json"


@dataclass(frozen=True)
class _Kept:
    version: int
    ragged: Tile
    split: Tile


def _read(path: Path, heads: Heads, capability: int) -> tuple[Tile, Tile] | None:
    """Ragged and split tile; None if there is no file, or one that cannot be used."""

    def tiles(data: Any) -> tuple[Tile, Tile]:
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise ValueError("it is of another version of minserve")
        kept = build(_Kept, data, "tiles")
        # A tile that was never a candidate may not compile, or compute something else.
        if kept.ragged not in ragged_candidates(heads):
            raise ValueError(f"{kept.ragged} is no candidate")
        plain = [replace(tile, programs=0) for tile in split_candidates(heads, capability)]
        if replace(kept.split, programs=0) not in plain or not 0 <= kept.split.programs <= MOST:
            raise ValueError(f"{kept.split} is no candidate")
        return kept.ragged, kept.split

    return cache_dir.read(path, tiles, "tiles of attention")


def _write(path: Path, ragged: Tile, split: Tile) -> None:
    content = asdict(_Kept(VERSION, ragged, split))
    cache_dir.write(path, content, "The fastest tiles of attention")
