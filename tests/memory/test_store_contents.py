"""What a store does with the contents of pages: moves tokens, reads pages, writes pages."""

from __future__ import annotations

import pytest
import torch

from minserve.memory import GroupPlan, KVCache
from minserve.memory.storage.exported import cut, joined
from minserve.spec import CacheGroup, CacheSpec, CacheTensor

SIZE, BLOCKS, SLOTS = 4, 9, 3
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
TENSORS = {
    "keys and values": (CacheTensor("key", 2, 8), CacheTensor("value", 2, 8)),
    "of two shapes": (CacheTensor("key", 1, 12), CacheTensor("value", 2, 8)),
}


def filled(device: str, tensors: tuple[CacheTensor, ...]) -> KVCache:
    """A group of three layers whose numbers are all different."""
    plan = GroupPlan(CacheGroup(CacheSpec(tensors), (0, 1, 2)), BLOCKS, SLOTS)
    cache = KVCache([plan], SIZE, torch.float32, torch.device(device))
    for layer, pair in cache.groups[0].layers.items():
        for index, pages in enumerate(pair):
            numbers = torch.arange(pages.numel(), dtype=torch.float32).reshape(pages.shape)
            pages.copy_(numbers + 10_000 * (2 * layer + index))
    return cache


def contents(cache: KVCache) -> list[torch.Tensor]:
    pages = [each for pair in cache.groups[0].layers.values() for each in pair]
    return [each.cpu().clone() for each in pages]


@pytest.mark.parametrize("tensors", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("device", DEVICES)
def test_moved_tokens_are_read_before_any_is_written(device, tensors):
    cache = filled(device, tensors)
    before = contents(cache)
    # Down a branch, as an accepted tree is compacted; the last two overlap.
    sources, targets = [7 * SIZE + 1, 8, 9, 10], [8, 9, 10, 2]
    cache.group(0).move(sources, targets)
    for old, new in zip(before, contents(cache), strict=True):
        expected = old.clone()
        for source, target in zip(sources, targets, strict=True):
            expected[target // SIZE, :, target % SIZE] = old[source // SIZE, :, source % SIZE]
        assert torch.equal(new, expected)


@pytest.mark.parametrize("tensors", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("device", DEVICES)
def test_pages_that_are_read_can_be_written_elsewhere(device, tensors):
    source, target = filled(device, tensors), filled(device, tensors)
    before = contents(target)
    blocks, there = [5, 1, 8], [0, 7, 2]
    pages = source.group(0).read(blocks)
    assert all(each.device.type == "cpu" for each in pages)
    target.group(0).write(there, pages)
    for old, new, from_ in zip(before, contents(target), contents(source), strict=True):
        expected = old.clone()
        expected[there] = from_[blocks]
        assert torch.equal(new, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_host_slots_are_read_like_the_pages_that_were_saved(device):
    cache = filled(device, TENSORS["of two shapes"])
    cache.group(0).save([6, 2], [1, 0])
    for slots, pages in zip(
        cache.group(0).read_host([1, 0]), cache.group(0).read([6, 2]), strict=True
    ):
        assert torch.equal(slots, pages)


@pytest.mark.parametrize("there", [1, 3, 4, 5, 16])
@pytest.mark.parametrize("first", [0, 3, 6])
def test_tokens_are_the_same_in_pages_of_any_size(first, there):
    """Pages of 4 to tokens to pages of another size, and back."""
    generator = torch.Generator().manual_seed(first)
    pages = [torch.randn(3, 2, 2, 1, SIZE, 5, generator=generator)]
    num = 11 - first % SIZE
    (tokens,) = joined(pages, 0, num)
    assert tokens.shape == (2, 2, 1, num, 5)
    start = first // there * there
    count = -(-(first + num - start) // there)
    (cuts,) = cut([tokens], first, start, count, there)
    assert cuts.shape == (count, 2, 2, 1, there, 5)
    (again,) = joined([cuts], 0, count * there)
    assert torch.equal(again[..., first - start : first - start + num, :], tokens)
    assert not again[..., : first - start, :].any()
