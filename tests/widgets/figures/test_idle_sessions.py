from __future__ import annotations

import pytest

from widgets import theme
from widgets.figures import idle_sessions


def test_every_session_is_drawn_once_and_the_words_add_up():
    where = {"small": ["gone"] * 700 + ["device"] * 20, "large": ["disk"] * 600 + ["host"] * 120}
    drawn = idle_sessions(where, caption="Recorded somewhere.")
    marks = [trace for trace in drawn.figure.data if trace.x and trace.x[0] is not None]
    assert sum(len(trace.x) for trace in marks) == 1440 == len(drawn.table)
    assert len({trace.marker.symbol for trace in marks}) == 4, "told apart without colour"
    assert all(len(trace.x) <= theme.MAX_MARKS for trace in marks)
    assert "20 of 720 sessions kept" in drawn.takeaway
    assert "720 of 720 sessions kept (120 in host memory, 600 on disk)" in drawn.takeaway
    assert drawn.caption == "Recorded somewhere."


def test_no_two_sessions_share_a_place():
    drawn = idle_sessions({"one": ["host", "gone", "disk"] * 30})
    places = [
        place
        for trace in drawn.figure.data
        for place in zip(trace.x, trace.y, strict=True)
        if place[0] is not None
    ]
    assert len(set(places)) == len(places) == 90


@pytest.mark.parametrize("where", [{}, {"one": []}, {"one": ["shelf"]}])
def test_what_cannot_be_drawn_is_refused(where):
    with pytest.raises(ValueError, match=r"idle_sessions needs|unknown tiers \['shelf'\]"):
        idle_sessions(where)
