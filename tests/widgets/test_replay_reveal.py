"""A long replay shows what has happened so far, and the rest when it happens."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from minserve.trace import RunTrace, TraceSnapshot
from widgets.figures import sides as given
from widgets.replays.frames import replay_html
from widgets.replays.replay import Replay
from widgets.replays.views import Stage, make_view

pytestmark = pytest.mark.usefixtures("drawn")


def slowed(trace: RunTrace, times: float) -> TraceSnapshot:
    """The same run, so many times as long."""
    whole = trace.snapshot()
    steps = tuple(
        replace(step, start_s=step.start_s * times, end_s=step.end_s * times)
        for step in whole.steps
    )
    return replace(whole, steps=steps, requests=())


def test_a_long_timeline_is_veiled_after_the_cursor_and_its_axis_stays(trace: RunTrace) -> None:
    long = slowed(trace, 100.0)
    replay = Replay({"a": long, "b": long}, ("timeline",))
    replay.controls  # noqa: B018
    (view,) = replay.views
    axis = tuple(view.live.figure.layout.xaxis.range)
    for index in (0, 5, len(replay.moments) - 1):
        replay.seek(index)
        assert replay.flush()
        place = replay.moment.at_s * 1.0
        veils = [s for s in view.live.figure.layout.shapes if s.type == "rect"]
        assert len(veils) == 2, "one on each side"
        assert {(veil.x0, veil.x1) for veil in veils} == {(place, axis[1])}
        assert tuple(view.live.figure.layout.xaxis.range) == axis
    replay.close()
    frames = json.loads(re.search(r"addFrames\('[^']*', (\[.*?\])\);?\s", replay_html(long))[1])
    shapes = [frame["layout"]["shapes"] for frame in frames]
    assert all(len(some) == 2 for some in shapes)
    assert all(some[0]["x0"] == some[1]["x0"] and some[0]["x1"] > some[0]["x0"] for some in shapes)


def test_a_short_timeline_is_shown_whole(trace: RunTrace) -> None:
    view = make_view("timeline", Stage(given.sides(trace)))
    assert {shape.type for shape in view.figure.layout.shapes} == {"line"}
