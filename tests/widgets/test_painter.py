from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from widgets import workers
from widgets.painter import Painter


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    workers._live.clear()
    yield
    workers._live.clear()


def test_many_wishes_are_few_drawings() -> None:
    painter = Painter("test", lambda: False, interval_s=0.05)
    start = time.monotonic()
    while time.monotonic() - start < 0.4:
        painter.ask()
        time.sleep(0.002)
    assert painter.flush(2)
    elapsed = time.monotonic() - start
    assert 2 <= painter.drawings <= elapsed / 0.05 + 2


def test_the_newest_state_is_always_drawn() -> None:
    state, seen = [0], []

    def draw() -> bool:
        seen.append(state[0])
        return False

    painter = Painter("test", draw, interval_s=0.02)
    for value in range(1, 40):
        state[0] = value
        painter.ask()
    assert painter.flush(2)
    assert seen[-1] == 39


def test_drawings_happen_in_one_thread_which_ends_when_idle() -> None:
    names: set[str] = set()
    painter = Painter("idle", lambda: bool(names.add(threading.current_thread().name)))
    painter.ask()
    assert painter.flush(2)
    assert names == {"painter: idle"}
    assert "painter: idle" not in {thread.name for thread in threading.enumerate()}
    assert not painter.painting


def test_an_error_is_kept_for_the_last_cell_and_ends_the_playing() -> None:
    def draw() -> bool:
        raise ZeroDivisionError("no picture")

    painter = Painter("broken", draw)
    painter.ask()
    assert painter.flush(2)
    assert isinstance(painter.error, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError, match="no picture"):
        workers.raise_panel_errors()


def test_closed_means_no_more_drawings() -> None:
    painter = Painter("closed", lambda: True, interval_s=0.01)
    painter.ask()
    time.sleep(0.05)
    painter.close()
    assert painter.flush(2)
    count = painter.drawings
    painter.ask()
    time.sleep(0.05)
    assert painter.drawings == count
