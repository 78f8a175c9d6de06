"""A batch crosses whole, in one copy; no buffer is written while the device may still read it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from minserve.batch import ForwardBatch, GroupTables
from minserve.execution.staging import ALIGNMENT, NUM_BUFFERS, StagedLink
from minserve.sampling import Logprobs, SampledTokens, plan_sampling


class LateDevice:
    """A device that copies only when it is waited for: the latest that a real one may."""

    def __init__(self) -> None:
        self.queue: list[tuple[Tensor, Tensor]] = []
        self.num_copies = 0
        self.waits = 0

    def buffer(self, num_bytes: int) -> Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def send(self, buffer: Tensor) -> Tensor:
        return self.fetch(buffer)

    def fetch(self, tensor: Tensor) -> Tensor:
        target = torch.empty_like(tensor)
        self.queue.append((target, tensor))
        self.num_copies += 1
        return target

    def mark(self) -> LateEvent:
        return LateEvent(self, self.num_copies)


class LateEvent:
    def __init__(self, device: LateDevice, place: int) -> None:
        self.device, self.place = device, place

    def synchronize(self) -> None:
        device = self.device
        done = device.num_copies - len(device.queue)
        device.waits += self.place > done
        for target, source in device.queue[: max(0, self.place - done)]:
            target.copy_(source)
        del device.queue[: max(0, self.place - done)]

    def finish(self) -> None:
        self.synchronize()


def batch_of(rows: int, seed: int) -> ForwardBatch:
    draw = torch.Generator().manual_seed(seed)

    def numbers(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(0, 1000, shape, generator=draw).to(dtype)

    group = GroupTables(numbers(rows), numbers(rows, 3, dtype=torch.int32))
    return ForwardBatch(
        token_ids=numbers(rows),
        positions=numbers(rows),
        query_starts=numbers(rows + 1, dtype=torch.int32),
        kv_lens=numbers(rows, dtype=torch.int32),
        groups=(group, group),
        sample_rows=numbers(rows),
        sampling=plan_sampling([]),
        prompt_rows=numbers(0),
        prompt_targets=numbers(0),
        num_prompt_logprobs=-1,
        query_lens=(1,) * rows,
        context_lens=(1,) * rows,
        pending=numbers(rows, 2).T,
    )


def tensors(batch: Any) -> list[Tensor]:
    found = []
    for item in fields(batch):
        value = getattr(batch, item.name)
        parts = value if isinstance(value, tuple) else (value,)
        for part in parts:
            if isinstance(part, Tensor):
                found.append(part)
            elif is_dataclass(part):
                found += tensors(part)
    return found


def test_a_batch_crosses_whole_in_one_copy() -> None:
    device = LateDevice()
    batch = batch_of(5, seed=0)
    there = StagedLink(device).upload(batch)
    assert device.num_copies == 1
    device.mark().synchronize()
    for sent, given in zip(tensors(there), tensors(batch), strict=True):
        assert sent.dtype == given.dtype and torch.equal(sent, given)
        assert sent.storage_offset() * sent.itemsize % ALIGNMENT == 0
    assert there.groups[0].slots.data_ptr() == there.groups[1].slots.data_ptr()
    assert there.query_lens == batch.query_lens


@pytest.mark.parametrize("num_buffers", [1, 2, NUM_BUFFERS])
def test_a_buffer_is_never_overwritten_while_the_device_may_read_it(num_buffers: int) -> None:
    device = LateDevice()
    link = StagedLink(device, num_buffers)
    batches = [batch_of(rows, seed) for seed, rows in enumerate((5, 2, 40, 1, 7, 40, 3))]
    there = [link.upload(batch) for batch in batches]
    device.mark().synchronize()
    for sent, given in zip(there, batches, strict=True):
        assert all(map(torch.equal, tensors(sent), tensors(given)))


def test_with_two_batches_in_flight_an_upload_waits_for_nothing() -> None:
    device = LateDevice()
    link = StagedLink(device)
    marks = []
    for seed in range(9):
        link.upload(batch_of(4, seed))
        marks.append(device.mark())
        before = device.waits
        if seed >= 1:
            marks[seed - 1].synchronize()  # The batch before is collected.
            device.waits = before
    assert device.waits == 0


def test_results_are_read_only_after_they_have_landed() -> None:
    device = LateDevice()
    ids = torch.tensor([3, 1, 4])
    entries = Logprobs(
        torch.rand(3), torch.ones(3, dtype=torch.int64), ids[:, None], torch.rand(3, 1)
    )
    landing = StagedLink(device).download(SampledTokens(ids, entries))
    assert len(device.queue) == 5, "nothing waits in download"
    landed = landing.wait()
    assert torch.equal(landed.token_ids, ids) and landed.token_ids is not ids
    assert all(map(torch.equal, tensors(landed), tensors(SampledTokens(ids, entries))))


@pytest.mark.gpu
def test_a_batch_crosses_to_a_gpu_and_back() -> None:
    from minserve.execution.staging import link_to

    link = link_to(torch.device("cuda"))
    batches = [batch_of(rows, seed) for seed, rows in enumerate((5, 200, 3, 77, 1000, 2))]
    # Work that keeps the device behind the host while buffers are used again.
    busy = torch.ones(4096, 4096, device="cuda")
    there = []
    for batch in batches:
        busy = (busy @ busy).clamp_(max=1.0)
        there.append(link.upload(batch))
    landed = [link.download(batch) for batch in there]
    for landing, given in zip(landed, batches, strict=True):
        assert all(map(torch.equal, tensors(landing.wait()), tensors(given)))
