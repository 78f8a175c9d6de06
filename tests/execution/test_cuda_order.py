"""What a GPU would be asked for, and in which order, seen on a machine that has none.

Streams, events and graphs are written down instead of used; their arguments are bound to the
signatures of the torch that is installed, so that a name that changed is seen here first.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine.fakes import full_group, tiny_spec

from minserve.batch import GroupTables
from minserve.bench.gpu.timing import race
from minserve.bench.workloads.drive import drive
from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.build import build_engine
from minserve.clock import VirtualClock
from minserve.config import EngineConfig
from minserve.execution.graphs import CudaCapture
from minserve.execution.staging import CudaCopies
from minserve.kernels.triton.analysis import autotune
from minserve.kernels.triton.ops import RaggedAttention
from minserve.loading import load_model
from minserve.memory import KVCache

DEVICE = torch.device("cuda", 1)
GRAPH, EVENT = torch.cuda.graph, torch.cuda.Event


class Gpu:
    """Writes down what is asked of it. `fail` is raised where a capture ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.fail: Exception | None = None
        self.stream = self.compute = Stream(self, "compute")
        self.streams = 0
        for name, fake in {
            "Stream": self.new_stream, "stream": lambda stream: Entered(self, stream),
            "current_stream": self.current, "set_stream": self.set_stream,
            "CUDAGraph": lambda: Graph(self), "graph": self.graph, "Event": self.event,
            "graph_pool_handle": lambda: "pool", "synchronize": self.synchronize,
            "device": lambda device: Entered(self, f"device {device.index}"),
            "empty_cache": lambda: None, "_sleep": lambda cycles: self.log.append("pause"),
        }.items():  # fmt: skip
            assert hasattr(torch.cuda, name), f"this torch has no torch.cuda.{name}"
            monkeypatch.setattr(torch.cuda, name, fake)

    def new_stream(self, device: torch.device) -> Stream:
        self.streams += 1
        return Stream(self, f"side {self.streams}")

    def current(self, device: Any = None) -> Stream:
        return self.stream

    def set_stream(self, stream: Stream) -> None:
        self.stream = stream

    def synchronize(self, device: Any = None) -> None:
        self.log.append("host waits")

    def graph(self, *args: Any, **named: Any) -> Capturing:
        bound = inspect.signature(GRAPH.__init__).bind(None, *args, **named).arguments
        return Capturing(self, bound)

    def event(self, **named: Any) -> Event:
        inspect.signature(EVENT.__new__).bind(None, **named)
        return Event(self)


class Stream:
    def __init__(self, gpu: Gpu, name: str) -> None:
        self.gpu, self.name, self.device = gpu, name, DEVICE

    def __str__(self) -> str:
        return self.name

    def wait_stream(self, other: Stream) -> None:
        self.gpu.log.append(f"{self} waits for {other}")

    def synchronize(self) -> None:
        self.gpu.log.append(f"host waits for {self}")


class Entered:
    def __init__(self, gpu: Gpu, what: Any) -> None:
        self.gpu, self.what = gpu, what

    def __enter__(self) -> None:
        self.gpu.log.append(f"on {self.what}")
        self.before = self.gpu.stream
        if isinstance(self.what, Stream):
            self.gpu.stream = self.what

    def __exit__(self, *error: object) -> None:
        self.gpu.log.append(f"off {self.what}")
        self.gpu.stream = self.before


class Graph:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def replay(self) -> None:
        self.gpu.log.append("replay")


class Capturing:
    """As torch 2.11 to 2.13 do it: a capture that fails raises before its stream is left."""

    def __init__(self, gpu: Gpu, bound: dict[str, Any]) -> None:
        self.gpu, self.bound = gpu, bound
        self.stream = bound.get("stream") or Stream(gpu, "torch's own")

    def __enter__(self) -> None:
        mode = self.bound.get("capture_error_mode", "global")
        self.gpu.log.append(f"capture on {self.stream} into {self.bound.get('pool')}, {mode}")
        self.before, self.gpu.stream = self.gpu.stream, self.stream

    def __exit__(self, *error: object) -> None:
        if self.gpu.fail is not None:
            raise self.gpu.fail
        self.gpu.log.append("captured")
        self.gpu.stream = self.before


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def record(self, stream: Stream | None = None) -> None:
        self.gpu.log.append(f"mark on {stream or self.gpu.stream}")

    def elapsed_time(self, end: Event) -> float:
        return 1.0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_a_capture_follows_a_run_on_the_same_side_stream(gpu: Gpu) -> None:
    capture = CudaCapture(DEVICE)
    replays = [capture.capture(lambda: gpu.log.append("run")) for _ in range(2)]
    once = [
        "side 1 waits for compute",  # The inputs are there.
        "on side 1", "run", "off side 1",  # Compiled, with a workspace of that stream.
        "capture on side 1 into pool, thread_local", "run", "captured",
        "compute waits for side 1",
    ]  # fmt: skip
    assert gpu.log == once * 2, "all graphs share a stream and a pool"
    assert gpu.stream is gpu.compute
    gpu.log.clear()
    replays[0]()
    assert gpu.log == ["replay"], "a replay waits for nobody"


def test_pages_move_on_a_side_stream_between_the_work_before_and_after(gpu: Gpu) -> None:
    store = KVCache(full_group(3, 2), 4, torch.float32, torch.device("cpu")).group(0)
    store._stream = torch.cuda.Stream(DEVICE)
    around = ["on side 1", "off side 1", "compute waits for side 1"]
    for pages, _ in store._pools:
        pages.copy_(torch.arange(pages.numel()).view(pages.shape))
    store.save([2], [0])
    store.load([0], [1])
    assert gpu.log == around * 2, "nothing is queued that they could meet"
    assert all(torch.equal(pages[:, :, 1], pages[:, :, 2]) for pages, _ in store._pools)
    gpu.log.clear()
    content = bytes(store.read_slot(0))
    store.write_slot(1, content)
    assert gpu.log == ["host waits for side 1"] * 2, "a slot is read when its copies are done"
    assert bytes(store.read_slot(1)) == content


def test_a_buffers_event_stands_behind_its_copy_on_the_current_stream(gpu: Gpu) -> None:
    copies = CudaCopies(DEVICE)
    copies.mark()
    with torch.cuda.stream(Stream(gpu, "another")):
        copies.mark()
    assert gpu.log == ["mark on compute", "on another", "mark on another", "off another"]


def test_an_engine_works_on_its_own_gpu_whichever_is_current(gpu: Gpu) -> None:
    config = EngineConfig(dtype="float32", device="cpu").with_values({"kernels.backend": "torch"})
    engine = build_engine(load_model("zoo/base", config, progress=False))
    engine._runner._device = DEVICE
    drive(engine, at_once([[5] * 9], [fixed_length(3)]))
    assert engine.trace.totals.steps == 3
    assert gpu.log == ["on device 1", "off device 1"] * 3


def test_tiles_are_timed_on_the_gpu_they_are_for(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "tune", lambda *_: gpu.log.append("timed") or autotune.Tuning())
    autotune.tune_model(tiny_spec(), torch.float32, DEVICE)
    assert gpu.log == ["on device 1", "timed", "off device 1"]


def test_a_call_that_cannot_be_captured_is_queued_on_the_stream_it_was_called_on(gpu: Gpu) -> None:
    gpu.fail = RuntimeError("operation not permitted when stream is capturing")
    found = race({"ours": [lambda: gpu.log.append("call")]}, DEVICE, 1, clock=VirtualClock())
    assert found["ours"].how == "queue" and found["ours"].seconds.values
    queued = ["host waits", "pause", "mark on compute", "call", "mark on compute", "host waits"]
    assert gpu.log[-len(queued) :] == queued


def test_a_call_that_is_captured_is_timed_by_replays(gpu: Gpu) -> None:
    found = race({"ours": [lambda: None] * 4}, DEVICE, 1, clock=VirtualClock())
    assert found["ours"].how == "graph" and found["ours"].seconds.median == 1e-3 / 4
    assert gpu.log[-4:] == ["mark on compute", "replay", "mark on compute", "host waits"]


def test_a_gpus_properties_have_the_names_that_are_asked_for() -> None:
    properties = torch._C.__dict__.get("_CudaDeviceProperties")
    if properties is None:
        pytest.skip("this torch was built without CUDA")
    asked = ("name", "total_memory", "major", "minor", "multi_processor_count", "L2_cache_size")
    assert [name for name in asked if not hasattr(properties, name)] == []


def test_tiles_of_ragged_attention_cross_in_one_copy_that_the_host_does_not_wait_for(monkeypatch):
    asked: list[Any] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        asked.append("pinned")
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        asked.append((device, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    empty = torch.empty(0, dtype=torch.int32)
    ragged = RaggedAttention(empty, empty, empty, (1, 5, 4, 1, 9))
    requests, starts = ragged._tiles_of(4, DEVICE)
    assert asked == ["pinned", (DEVICE, True)]
    assert requests.tolist() == [0, 1, 1, 2, 3, 4, 4, 4]
    assert starts.tolist() == [0, 0, 4, 0, 0, 0, 4, 8]
    # The layers of a step share them.
    assert ragged._tiles_of(4, DEVICE)[0] is requests and len(asked) == 2
    odd, places = RaggedAttention(empty, empty, empty, (5, 1))._tiles_of(4, DEVICE)
    assert odd.tolist() == [0, 0, 1] and places.tolist() == [0, 4, 0]
    assert (places.data_ptr() - odd.data_ptr()) % 16 == 0


def batch_over(pages: list[int]) -> Any:
    table = torch.tensor([pages], dtype=torch.int32)
    return SimpleNamespace(groups=(GroupTables(torch.empty(0, dtype=torch.int64), table),))


def test_a_transfer_waits_for_the_batch_or_the_copy_that_it_could_meet(gpu: Gpu) -> None:
    cache = KVCache(full_group(4, 4), 4, torch.float32, torch.device("cpu"))
    store = cache.group(0)
    store._stream = torch.cuda.Stream(DEVICE)

    def waits(move: Any, *places: list[int]) -> bool:
        gpu.log.clear()
        move(*places)
        return gpu.log[0] == "side 1 waits for compute"

    cache.submitted(batch_over([1, 2]))
    assert not waits(store.save, [1], [0]), "what is saved was committed before"
    assert waits(store.load, [0], [2]) and not waits(store.load, [0], [3])
    store.copy([1], [3])
    assert waits(store.save, [3], [1]) and waits(store.load, [0], [0])
    cache.submitted(batch_over([0]))
    cache.collected()
    assert waits(store.save, [3], [1]), "the copy was queued behind the batch that is done"
    assert waits(store.load, [0], [1]), "and may still read its source"
    cache.collected()
    assert not waits(store.save, [3], [1]) and not waits(store.load, [0], [1])
    cache.failed()
    assert waits(store.load, [0], [1]), "what a pass began before it failed may still run"
