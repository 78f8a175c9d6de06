"""Shards of a fused projection compute what the whole one computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minserve.kernels.base import PackedShape
from minserve.kernels.reference.ops import TorchOps
from minserve.layers import DenseFormat, Linear, LinearShape, PackedFormat, WeightFormat

OPS = TorchOps()


class Drawn:
    """A tensor source of random numbers."""

    def read(self, suffix: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64)


FORMATS: list[WeightFormat] = [
    DenseFormat(),
    *(PackedFormat(PackedShape(*sizes)) for sizes in ((4, 1), (4, 2), (16, 1))),
]
IDS = ["dense", "packed 4", "packed 4 x 2", "packed 16"]


def fused(bias: bool, weight_format: WeightFormat = FORMATS[0]) -> Linear:
    torch.manual_seed(0)
    shape = LinearShape(12, (8, 4, 4), bias)
    return Linear(
        shape, weight_format.load(shape, [Drawn()] * 3, torch.float64, torch.device("cpu"))
    )


@pytest.mark.parametrize("width", [1, 3, 8, 16, 20])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_packed_weight_is_the_matrix_it_was_made_from(width: int, depth: int) -> None:
    dense, packed = fused(True), fused(True, PackedFormat(PackedShape(width, depth)))
    x = torch.randn(5, 12, dtype=torch.float64)
    torch.testing.assert_close(packed.apply(OPS, x), dense.apply(OPS, x))
    chosen, weights = torch.tensor([15, 0, 7, 7]), (dense.weight, packed.weight)
    tables: list[Any] = list(weights)
    assert torch.equal(tables[1].rows(chosen), tables[0].rows(chosen))


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weight_format", FORMATS[:3], ids=IDS[:3])
def test_output_shards_hold_their_rows_of_every_part(
    world: int, bias: bool, weight_format: WeightFormat
) -> None:
    whole = fused(bias, weight_format)
    x = torch.randn(5, 12, dtype=torch.float64)
    parts = whole.apply(OPS, x).split_with_sizes([8, 4, 4], 1)
    for rank in range(world):
        shard = whole.shard(rank, world, "output")
        wanted = torch.cat([part.chunk(world, 1)[rank] for part in parts], 1)
        torch.testing.assert_close(shard.apply(OPS, x), wanted)
        assert shard.nbytes * world == whole.nbytes


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("weight_format", FORMATS, ids=IDS)
def test_input_shards_sum_to_the_whole_with_one_bias(
    world: int, weight_format: WeightFormat
) -> None:
    whole = fused(True, weight_format)
    x = torch.randn(5, 12, dtype=torch.float64)
    shards = [whole.shard(rank, world, "input") for rank in range(world)]
    partial = [
        shard.apply(OPS, piece) for shard, piece in zip(shards, x.chunk(world, 1), strict=True)
    ]
    torch.testing.assert_close(sum(partial), whole.apply(OPS, x))
    assert [shard.shape.bias for shard in shards] == [True] + [False] * (world - 1)


def test_shard_is_a_copy_so_that_the_whole_can_be_freed() -> None:
    whole = fused(bias=False)
    weight: Any = whole.weight
    shard: Any = whole.shard(0, 2, "output").weight
    assert shard.weight.untyped_storage().data_ptr() != weight.weight.untyped_storage().data_ptr()


@pytest.mark.parametrize(("world", "dim"), [(3, "output"), (8, "output"), (5, "input")])
def test_uneven_shards_are_refused(world: int, dim: Any) -> None:
    with pytest.raises(ValueError, match=f"into {world} equal shards"):
        fused(bias=False).shard(0, world, dim)
