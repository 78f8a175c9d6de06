"""Clocks, and the promise that nothing else in minserve reads the time."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import minserve
from minserve.clock import VirtualClock, WallClock

ROOM = Path(minserve.__file__).parent
STANDALONE = {
    "bench/peers/llama_peer.py",
    "bench/peers/openvino_peer.py",
    "bench/commits/side.py",
}
"""Runs in another environment, where minserve is not installed, or is another version."""


def test_a_virtual_clock_moves_only_when_told():
    clock = VirtualClock(5.0)
    assert clock.now() == 5.0
    clock.advance(1.5)
    clock.wait_until(6.0)
    assert clock.now() == 6.5
    clock.wait_until(9.0)
    assert clock.now() == 9.0
    with pytest.raises(ValueError, match="cannot run backwards"):
        clock.advance(-1)


def test_a_wall_clock_never_goes_back_and_waits():
    clock = WallClock()
    start = clock.now()
    clock.wait_until(start + 0.01)
    assert clock.now() >= start + 0.01
    clock.wait_until(start)


def test_nothing_else_in_minserve_reads_a_clock():
    readers = []
    for path in sorted(ROOM.rglob("*.py")):
        if path == ROOM / "clock.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            if "time" in names:
                readers.append(str(path.relative_to(ROOM)))
    assert set(readers) <= STANDALONE, "these read the time themselves: take a Clock instead"
