from __future__ import annotations

import pytest

from widgets.figures import idle_sessions


def test_every_session_is_drawn_once_and_the_words_add_up():
    where = {"small": ["gone"] * 700 + ["device"] * 20, "large": ["disk"] * 600 + ["host"] * 120}
    drawn = idle_sessions(where, caption="Recorded somewhere.")
    cells = [bar for bar in drawn.figure.data if bar.base]
    assert sum(sum(bar.x) for bar in cells) == 1440 == len(drawn.table)
    assert "20 of 720 sessions kept" in drawn.takeaway
    assert "720 of 720 sessions kept (120 in host memory, 600 on disk)" in drawn.takeaway
    assert drawn.caption == "Recorded somewhere."


def test_no_two_sessions_share_a_place():
    drawn = idle_sessions({"one": ["host", "gone", "disk"] * 30})
    places = [
        (base + place, y)
        for bar in drawn.figure.data
        if bar.base
        for base, size, y in zip(bar.base, bar.x, bar.y, strict=True)
        for place in range(size)
    ]
    assert len(set(places)) == len(places) == 90


@pytest.mark.parametrize("where", [{}, {"one": []}, {"one": ["shelf"]}])
def test_what_cannot_be_drawn_is_refused(where):
    with pytest.raises(ValueError, match=r"idle_sessions needs|unknown tiers \['shelf'\]"):
        idle_sessions(where)
