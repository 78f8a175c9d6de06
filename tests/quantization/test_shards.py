"""Shards of a fused matrix compute what the whole one computes, in every format."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minserve.kernels.matrix import Matrix, PackedShape
from minserve.kernels.reference.ops import TorchOps
from minserve.layers import Linear
from minserve.quantization.formats import FORMATS, WeightFormat, load_matrix, shard_matrix
from minserve.spec import LinearShape

OPS = TorchOps()
SHAPE = LinearShape(12, (8, 4, 4), bias=True)
CPU = torch.device("cpu")


class Drawn:
    """A tensor source of random numbers."""

    def read(self, suffix: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64)


def fused(weight_format: WeightFormat, shape: LinearShape = SHAPE) -> Matrix:
    torch.manual_seed(0)
    sources = [Drawn() for _ in shape.parts]
    return load_matrix(weight_format, shape, sources, torch.float64, CPU)


def product(matrix: Matrix, x: torch.Tensor) -> torch.Tensor:
    return Linear(matrix, OPS).apply(None, x)


@pytest.mark.parametrize("width", [1, 3, 8, 16, 20])
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_matrix_is_the_one_it_was_made_from(name: str, width: int, depth: int) -> None:
    canonical = fused(FORMATS[name])
    packed = canonical.packed(PackedShape(width, depth))
    assert torch.equal(packed.canonical().codes, canonical.codes)
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(product(packed, x), product(canonical, x))
    chosen = torch.tensor([15, 0, 7, 7])
    assert torch.equal(packed.rows(chosen), canonical.rows(chosen))
    assert torch.equal(packed.rows(chosen), canonical.dequantised()[chosen])


@pytest.mark.parametrize("packing", [None, PackedShape(4), PackedShape(4, 2)])
@pytest.mark.parametrize("name", FORMATS)
def test_a_part_is_those_outputs_over_the_same_memory(
    name: str, packing: PackedShape | None
) -> None:
    whole = fused(FORMATS[name]).packed(packing)
    x = torch.randn(5, 12, dtype=torch.float64)
    expected = product(whole, x)
    part = whole.part(8, 14)
    assert part is not None
    torch.testing.assert_close(product(part, x), expected[:, 8:14])
    torch.testing.assert_close(Linear(whole, OPS).part(3, 9).apply(None, x), expected[:, 3:9])
    storages = {each.codes.untyped_storage().data_ptr() for each in (whole, part)}
    assert len(storages) == 1
    assert (whole.part(3, 9) is None) == (packing is not None)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_output_shards_hold_their_rows_of_every_part(world: int, bias: bool, name: str) -> None:
    shape = LinearShape(12, (8, 4, 4), bias)
    whole = fused(FORMATS[name], shape)
    x = torch.randn(5, 12, dtype=torch.float64)
    parts = product(whole, x).split_with_sizes([8, 4, 4], 1)
    for rank in range(world):
        shard = shard_matrix(FORMATS[name], whole, shape, rank, world, "output")
        wanted = torch.cat([part.chunk(world, 1)[rank] for part in parts], 1)
        torch.testing.assert_close(product(shard, x), wanted)
        assert shard.nbytes * world == whole.nbytes


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("name", FORMATS)
def test_input_shards_sum_to_the_whole_with_one_bias(world: int, name: str) -> None:
    whole = fused(FORMATS[name])
    x = torch.randn(5, 12, dtype=torch.float64)
    shards = [
        shard_matrix(FORMATS[name], whole, SHAPE, rank, world, "input") for rank in range(world)
    ]
    pieces = zip(shards, x.chunk(world, 1), strict=True)
    total = sum(product(shard, piece) for shard, piece in pieces)
    torch.testing.assert_close(total, product(whole, x))
    assert [shard.bias is not None for shard in shards] == [True] + [False] * (world - 1)


@pytest.mark.parametrize("dim", ["output", "input"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_shard_is_a_copy_so_that_the_whole_can_be_freed(name: str, dim: Any) -> None:
    whole = fused(FORMATS[name])
    kept = shard_matrix(FORMATS[name], whole, SHAPE, 0, 2, dim)
    for mine, theirs in ((kept.codes, whole.codes), (kept.scales, whole.scales)):
        if mine is not None and theirs is not None:
            assert mine.untyped_storage().data_ptr() != theirs.untyped_storage().data_ptr()


@pytest.mark.parametrize(("world", "dim"), [(3, "output"), (8, "output"), (5, "input")])
def test_uneven_shards_are_refused(world: int, dim: Any) -> None:
    with pytest.raises(ValueError, match=f"into {world} equal shards"):
        shard_matrix(FORMATS["dense"], fused(FORMATS["dense"]), SHAPE, 0, world, dim)
