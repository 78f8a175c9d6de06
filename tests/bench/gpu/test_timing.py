"""Time on the device: rounds take turns, budgets stop repetitions, idle is period minus busy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minserve.bench.gpu.cases.transformers_peer import PeerRun, fastest_window
from minserve.bench.gpu.engines import step_times
from minserve.bench.gpu.record import Record
from minserve.bench.gpu.setting import Setting
from minserve.bench.gpu.timing import Budget, ClockEvent, num_copies, race
from minserve.clock import VirtualClock

CPU = torch.device("cpu")


def setting(tmp_path: Path, clock: VirtualClock, limit_s: float) -> Setting:
    record = Record(tmp_path / "x.json", {})
    return Setting(CPU, False, clock, Budget(limit_s, clock), record, tmp_path)


def test_a_race_warms_every_set_of_buffers_and_times_all_of_them() -> None:
    clock = VirtualClock()
    seen: list[str] = []

    def call(name: str, seconds: float):
        def run() -> None:
            seen.append(name)
            clock.advance(seconds)

        return run

    sides = {"a": [call("a0", 1.0), call("a1", 3.0)], "b": [call("b0", 0.5), call("b1", 0.5)]}
    found = race(sides, CPU, 2, clock=clock)
    assert seen[:2] == ["a0", "a1"], "a capture finds everything compiled"
    assert found["a"].seconds.values == (2.0, 2.0) and found["a"].how == "clock"
    assert found["b"].seconds.median == 0.5


def test_a_gpu_goes_round_buffers_until_its_cache_has_forgotten_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Card:
        L2_cache_size = 50 << 20

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    device = torch.device("cuda")
    assert num_copies(1 << 30, device) == 2
    assert num_copies(10 << 20, device) == 20
    assert num_copies(16, device) == 256, "no more than anybody wants to allocate"


def test_a_part_over_its_time_stops_repeating_and_says_so(tmp_path: Path) -> None:
    clock = VirtualClock()
    here = setting(tmp_path, clock, limit_s=10.0)
    assert len(here.repeat(lambda: clock.advance(4.0), 5, "long")) == 2
    assert here.record.data["notes"] == ["long: 2 of 5 rounds, the part's time was over"]
    # Once at least, whatever the time.
    assert len(here.repeat(lambda: clock.advance(4.0), 5, "late")) == 1
    assert not here.time_for("the rest", 1.0)
    assert here.record.data["not_run"] == ["the rest: 0 s were left of the part's time"]


def test_sides_take_turns_and_the_order_turns_round(tmp_path: Path) -> None:
    clock, seen = VirtualClock(), []

    def side(name: str):
        def run() -> int:
            seen.append(name)
            clock.advance(2.0)
            return len(seen)

        return run

    here = setting(tmp_path, clock, limit_s=10.0)
    found = here.take_turns({"a": side("a"), "b": side("b")}, 5, "turns")
    assert seen == ["a", "b", "b", "a"] and found == {"a": [1, 4], "b": [2, 3]}
    assert here.record.data["notes"] == ["turns: 2 of 5 rounds, the part's time was over"]


def test_idle_is_what_lies_between_one_pass_and_the_next() -> None:
    clock = VirtualClock()
    passes = []
    for _ in range(4):
        start, end = ClockEvent(clock), ClockEvent(clock)
        start.record()
        clock.advance(0.006)
        end.record()
        clock.advance(0.002)
        passes.append((start, end))
    found = step_times(passes)
    assert found is not None
    assert found.period_s == pytest.approx(0.008)
    assert found.busy_s == pytest.approx(0.006)
    assert found.idle_s == pytest.approx(0.002)
    assert step_times(passes[:1]) is None


def test_a_run_that_was_cut_off_is_judged_by_its_fastest_stretch() -> None:
    # Ten seconds of prompts, five at 100 tokens/s, five at 20.
    progress = [(0.0, 0), (10.0, 0), (15.0, 500), (20.0, 600)]
    assert fastest_window(progress, 5.0) == 100.0
    assert fastest_window(progress, 50.0) == 30.0
    cut = PeerRun(600, 20.0, False, progress, {})
    assert cut.tokens_per_s == 100.0
    assert PeerRun(600, 20.0, True, progress, {}).tokens_per_s == 30.0
    with pytest.raises(ValueError, match="a beginning and an end"):
        fastest_window([(0.0, 0)])


class Cuda:
    """What `race` asks of `torch.cuda`, on a clock: a call takes a second, a launch in a graph
    nothing on top."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clock: VirtualClock) -> None:
        self.clock, self.said = clock, list[str]()
        cuda = self

        class Event(ClockEvent):
            def __init__(self, enable_timing: bool) -> None:
                super().__init__(clock)

        class Graph:
            def __init__(self) -> None:
                self.launched = 0

            def replay(self) -> None:
                cuda.said.append("replay")
                clock.advance(1.0 * self.launched)

        class Capture:
            def __init__(self, graph: Graph) -> None:
                self.graph = graph

            def __enter__(self) -> None:
                cuda.capturing = self.graph

            def __exit__(self, *error: object) -> None:
                cuda.capturing = None

        self.capturing: Graph | None = None
        for name, value in {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": Capture,
            "synchronize": lambda device: None,
            "current_stream": lambda device: "the caller's",
            "set_stream": lambda stream: cuda.said.append(stream),
            "_sleep": lambda cycles: cuda.said.append("pause"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def call(self, waits: bool = False):
        def run() -> None:
            if self.capturing is None:
                self.clock.advance(1.0)
            elif waits:
                raise RuntimeError("operation not permitted when stream is capturing")
            else:
                self.capturing.launched += 1

        return run


def test_on_a_gpu_calls_are_captured_and_those_that_cannot_be_are_queued_behind_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda(monkeypatch, VirtualClock())
    sides = {
        "captured": [cuda.call()] * 5,
        "refuses": [cuda.call(waits=True)] * 3,
        "known to wait": [cuda.call(waits=True)] * 3,
    }
    found = race(sides, torch.device("cuda"), 4, frozenset({"known to wait"}))
    assert {name: each.how for name, each in found.items()} == {
        "captured": "graph", "refuses": "queue", "known to wait": "queue",
    }  # fmt: skip
    for each in found.values():
        assert each.seconds.values == (1.0,) * 4
    # A warm-up and four rounds of each.
    assert cuda.said.count("replay") == 5 and cuda.said.count("pause") == 10
    assert cuda.said.count("the caller's") == 1, "a refused capture gives the stream back"
