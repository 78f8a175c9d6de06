"""Waiting threads spin where cores are free; the governor on a clock and times of our own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from minserve.kernels import why_not_native
from minserve.kernels.cpu import spinning
from minserve.kernels.cpu.spinning import INTERVAL_S, SpinGovernor


class Machine:
    """A clock, a switch, and what threads ran and waited; `pass_by` is one interval with a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spinning, "user_chose", lambda _: False)
        self.now = self.ran = self.waited = 0.0
        self.switched: list[str] = []
        self.looks = 0
        self.governor = SpinGovernor(self, times=self.times, clock=lambda: self.now)
        self.governor.step()

    def times(self) -> tuple[float, float]:
        self.looks += 1
        return self.ran, self.waited

    def on(self) -> None:
        self.switched.append("on")

    def off(self) -> None:
        self.switched.append("off")

    def pass_by(self, share: float, ready_s: float = 0.3) -> None:
        self.now += INTERVAL_S
        self.ran += ready_s * (1 - share)
        self.waited += ready_s * share
        self.governor.step()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_alone_nothing_is_switched(machine: Machine) -> None:
    for _ in range(20):
        machine.pass_by(0.03)
    assert machine.switched == [] and not machine.governor.short


def test_a_neighbour_ends_spinning_and_two_quiet_looks_bring_it_back(machine: Machine) -> None:
    machine.pass_by(0.25)
    assert machine.switched == ["on"] and machine.governor.short
    machine.pass_by(0.5)
    machine.pass_by(0.01)
    assert machine.switched == ["on"]
    machine.pass_by(0.01)
    assert machine.switched == ["on", "off"] and not machine.governor.short


def test_between_free_and_taken_nothing_changes(machine: Machine) -> None:
    machine.pass_by(0.1)
    machine.pass_by(0.5)
    for share in (0.1, 0.01, 0.1, 0.01, 0.1):
        machine.pass_by(share)
    assert machine.switched == ["on"]


def test_an_idle_engine_says_nothing(machine: Machine) -> None:
    machine.pass_by(1.0, ready_s=0.001)
    assert machine.switched == []
    machine.pass_by(0.5)
    for _ in range(5):
        machine.pass_by(0.0, ready_s=0.001)
    assert machine.switched == ["on"]


def test_a_thread_that_ended_with_its_times_says_nothing(machine: Machine) -> None:
    machine.pass_by(0.5)
    machine.ran, machine.waited = 0.0, 0.0
    machine.pass_by(0.0)
    assert machine.switched == ["on"]
    machine.pass_by(0.0)
    machine.pass_by(0.0)
    assert machine.switched == ["on", "off"]


def test_times_are_read_once_an_interval(machine: Machine) -> None:
    looks = machine.looks
    for _ in range(100):
        machine.now += INTERVAL_S / 50
        machine.governor.step()
    assert machine.looks - looks == 2


def test_a_step_survives_where_no_thread_can_be_started(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on() -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(machine, "on", on)
    looks = machine.looks
    for _ in range(3):
        machine.pass_by(0.5)
    assert machine.looks == looks + 1 and not machine.governor.short


@pytest.mark.parametrize("error", [OSError("not told"), ValueError("no number"), IndexError()])
def test_a_system_that_does_not_tell_is_asked_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked = []

    def times() -> tuple[float, float]:
        asked.append(1)
        raise error

    governor = SpinGovernor(machine, times=times, clock=lambda: machine.now)
    for _ in range(5):
        machine.now += INTERVAL_S
        governor.step()
    assert len(asked) == 1 and machine.switched == []


def test_what_the_user_chose_is_left_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spinning, "user_chose", lambda _: True)
    governor = SpinGovernor(machine, times=machine.times, clock=lambda: machine.now)
    looks = machine.looks
    for _ in range(3):
        machine.now += INTERVAL_S
        machine.waited += 1.0
        governor.step()
    assert machine.looks == looks and machine.switched == []


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="Linux tells")
def test_the_system_tells_how_long_threads_ran() -> None:
    before = spinning.ready_times()
    while spinning.ready_times()[0] - before[0] < 0.005:
        pass
    assert spinning.ready_times()[1] >= 0


_TEAM = """
import os, time, torch
from minserve.kernels.cpu.native import native_ops
torch.set_num_threads(2)
torch.ones(1 << 20).add_(1)  # torch's own team
count = lambda: len(os.listdir("/proc/self/task"))
def settles(expected):
    until = time.monotonic() + 30
    while count() != expected and time.monotonic() < until:
        time.sleep(0.005)
    return count() == expected
switch, first = native_ops()._spinning._switch, count()
for _ in range(3):
    switch.on()
    assert settles(first + 2), (first, count())
    switch.off()
    assert settles(first), (first, count())
switch.on()  # A process that ends with its spare team open ends.
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
def test_a_spare_team_comes_and_goes() -> None:
    done = subprocess.run([sys.executable, "-c", _TEAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))
@pytest.mark.parametrize(("threads", "steps"), [(1, 0), (2, 1)])
def test_a_step_on_several_threads_looks(
    monkeypatch: pytest.MonkeyPatch, threads: int, steps: int
) -> None:
    from kernels.ragged import Shape, build

    from minserve.kernels.cpu.native import native_ops

    taken: list[int] = []
    monkeypatch.setattr(native_ops()._spinning, "step", lambda: taken.append(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batch = build(Shape((1,), (3,), 16, 2, 2, 64, None, 0), torch.float32)
        native_ops().plan_attention(*batch.args())
    finally:
        torch.set_num_threads(before)
    assert len(taken) == steps
