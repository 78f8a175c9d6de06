"""Pages that leave the device come back as they were, or not at all."""

from __future__ import annotations

import errno
import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from minserve.memory import DiskTier, GroupPlan, HostTier, IntegrityError, KVCache, ResumeCosts
from minserve.models.blocks import AttentionSpec, FeedForwardSpec
from minserve.spec import LayerSpec, ModelSpec

KEYS = [bytes([i]) * 32 for i in range(8)]


class Pages:
    """A page store in the plainest form: page and slot numbers to values."""

    def __init__(self, num_blocks: int, num_slots: int) -> None:
        self.device = np.arange(num_blocks, dtype=np.int64)
        self.host = np.full(num_slots, -1, dtype=np.int64)

    def copy(self, sources, targets):
        self.device[targets] = self.device[sources]

    def save(self, blocks, slots):
        self.host[slots] = self.device[blocks]

    def load(self, slots, blocks):
        self.device[blocks] = self.host[slots]

    def read_slot(self, slot):
        return memoryview(self.host[slot].tobytes())

    def write_slot(self, slot, data):
        self.host[slot] = np.frombuffer(data, dtype=np.int64)[0]


def test_files_go_with_a_tier_that_nobody_closed(tmp_path):
    disk = DiskTier(tmp_path, 1 << 20)
    assert disk.put(b"key", b"page") and any(tmp_path.iterdir())
    del disk
    gc.collect()
    assert not any(tmp_path.iterdir())


def make(num_slots: int, disk: DiskTier | None = None) -> tuple[HostTier, Pages]:
    pages = Pages(8, num_slots)
    return HostTier(num_slots, pages, disk), pages


def test_a_demoted_page_comes_back_and_stays_for_the_next_time():
    host, pages = make(4)
    host.demote(KEYS[:3], [0, 1, 2])
    for _ in range(2):
        host.load(host.fetch(KEYS[:3]), [5, 6, 7])
        assert pages.device[5:].tolist() == [0, 1, 2]
        pages.device[5:] = -9
    host.check([])


def test_the_least_recently_used_page_goes_first():
    host, _ = make(2)
    host.demote([KEYS[0]], [0])
    host.demote([KEYS[1]], [1])
    host.touch([KEYS[0]])
    host.demote([KEYS[2]], [2])
    assert [host.find(key) for key in KEYS[:3]] == ["host", None, "host"]


def test_more_demoted_pages_than_slots_keep_the_last_ones():
    host, _ = make(2)
    host.demote(KEYS[:4], [0, 1, 2, 3])
    assert [host.find(key) for key in KEYS[:4]] == [None, None, "host", "host"]
    host.check([])


def test_swapped_pages_are_never_pushed_out():
    host, pages = make(3)
    slots = host.swap_out([0, 1])
    assert slots is not None
    host.demote(KEYS[:3], [2, 3, 4])
    assert host.num_owned == 2 and host.num_cached == 1
    assert host.swap_out([5, 6]) is None
    host.load(slots, [6, 7])
    assert pages.device[6:].tolist() == [0, 1]
    host.check([slots])
    host.release(slots)
    host.check([])
    with pytest.raises(IntegrityError, match="freed twice"):
        host.release(slots)


def test_a_host_without_room_for_one_page_loses_it():
    host, _ = make(1)
    host.swap_out([0])
    host.demote([KEYS[0]], [1])
    assert host.find(KEYS[0]) is None


def test_what_the_host_evicts_is_found_on_disk(tmp_path):
    host, pages = make(1, DiskTier(tmp_path, 1 << 20))
    host.demote([KEYS[0]], [4])
    host.demote([KEYS[1]], [5])
    assert (host.find(KEYS[0]), host.find(KEYS[1])) == ("disk", "host")
    host.load(host.fetch([KEYS[0]]), [0])
    assert pages.device[0] == 4
    assert host.find(KEYS[1]) == "disk"


def test_a_fetch_longer_than_the_host_stops_where_it_is_full(tmp_path):
    host, _ = make(2, DiskTier(tmp_path, 1 << 20))
    host.demote(KEYS[:2], [0, 1])
    host.demote(KEYS[2:4], [2, 3])
    assert len(host.fetch(KEYS[:4])) == 2
    host.check([])


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "swap"])
def test_a_damaged_file_is_a_miss_and_never_a_wrong_page(damage, tmp_path):
    disk = DiskTier(tmp_path, 1 << 20)
    disk.put(KEYS[0], b"a page of numbers")
    disk.put(KEYS[1], b"another page here")
    first, second = (Path(disk._path(key)) for key in KEYS[:2])
    if damage == "flip":
        content = bytearray(first.read_bytes())
        content[-1] ^= 1
        first.write_bytes(content)
    elif damage == "truncate":
        first.write_bytes(first.read_bytes()[:-1])
    elif damage == "delete":
        first.unlink()
    else:
        first.write_bytes(second.read_bytes())
    assert disk.get(KEYS[0]) is None
    assert disk.num_damaged == 1 and KEYS[0] not in disk
    assert disk.get(KEYS[1]) == b"another page here"


def test_the_disk_keeps_within_its_bytes(tmp_path):
    disk = DiskTier(tmp_path, 3 * (10 + 16))
    for key in KEYS[:4]:
        assert disk.put(key, bytes(10))
    assert [key in disk for key in KEYS[:4]] == [False, True, True, True]
    assert disk.used_bytes == sum(file.stat().st_size for file in tmp_path.glob("*/*"))
    assert not disk.put(KEYS[5], bytes(1000))
    assert len(disk) == 3


def test_a_full_disk_is_a_sentence_and_no_tier(tmp_path, monkeypatch):
    disk = DiskTier(tmp_path, 1 << 20)
    disk.put(KEYS[0], b"kept")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", full)
    assert not disk.put(KEYS[1], b"lost")
    monkeypatch.undo()
    assert disk.failure is not None and "No space left on device" in disk.failure
    assert not disk.put(KEYS[2], b"not even tried")
    assert disk.get(KEYS[0]) == b"kept"


def test_closing_leaves_nothing_behind(tmp_path):
    disk = DiskTier(tmp_path / "new" / "folder", 1 << 20)
    disk.put(KEYS[0], b"page")
    disk.close()
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def two_kinds_of_layers() -> ModelSpec:
    """Layers of two cache shapes: two groups of pages."""
    return ModelSpec(
        family="llama",
        vocab_size=10,
        hidden_size=16,
        layers=(
            LayerSpec(AttentionSpec(4, 2, 8), FeedForwardSpec(16)),
            LayerSpec(AttentionSpec(4, 1, 16), FeedForwardSpec(16)),
            LayerSpec(AttentionSpec(4, 2, 8), FeedForwardSpec(16)),
        ),
        norm_eps=1e-5,
        max_position=64,
        tie_embeddings=True,
        eos_token_ids=(0,),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_real_store_moves_every_layer_of_a_page(dtype):
    spec = two_kinds_of_layers()
    plans = [GroupPlan(group, 6, num_host_slots=3) for group in spec.cache_groups()]
    cache = KVCache(plans, 4, dtype, torch.device("cpu"))
    layers = cache.layers_of(spec)
    for keys, values in layers:
        keys.copy_(torch.randn(keys.shape))
        values.copy_(torch.randn(values.shape))
    want = [(keys[1].clone(), values[1].clone()) for keys, values in layers]

    def same(block: int, group: int) -> bool:
        return all(
            torch.equal(layers[layer][0][block], want[layer][0])
            and torch.equal(layers[layer][1][block], want[layer][1])
            for layer in plans[group].group.layers
        )

    assert [plan.group.layers for plan in plans] == [(0, 2), (1,)]
    for number in range(2):
        store = cache.group(number)
        store.copy([1], [2])
        assert same(2, number) and not same(3, number)
        store.save([1], [0])
        store.load([0], [3])
        assert same(3, number)
        store.write_slot(2, bytes(store.read_slot(0)))
        store.load([2], [4])
        assert same(4, number) and not same(5, number)
        assert number or not same(2, 1), "the pages of a group are its own"
    assert cache.host_bytes == 3 * cache.nbytes // 6


def test_the_faster_way_back_is_chosen_once_both_were_measured():
    costs = ResumeCosts("auto")
    assert costs.should_load(["host"], 16)
    costs.loaded("host", 2, 0.002)
    costs.computed(100, 0.1)
    assert costs.should_load(["host"], 16)
    costs.computed(100, 0.0001)
    for _ in range(60):
        costs.computed(100, 0.0001)
    assert not costs.should_load(["host"], 16)
    assert ResumeCosts("load").should_load(["host"], 1)
    assert not ResumeCosts("recompute").should_load(["host"], 10_000)
