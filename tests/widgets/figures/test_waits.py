"""Waits of a server's clients: every request is drawn or counted, and refusals are marked apart."""

from __future__ import annotations

import pytest

from widgets import theme
from widgets.figures import Asked, waits

FLAT = [Asked(0.1 * n, 0.2) for n in range(40)]
RISING = [Asked(0.1 * n, 0.2 + 0.05 * n if n % 4 else None) for n in range(80)]


def test_each_request_is_a_mark_and_refusals_lie_below():
    drawn = waits({"closed loop": FLAT, "open loop": RISING})
    marks = {trace.name: trace for trace in drawn.figure.data}
    assert len(marks["closed loop"].x) == 40 and len(marks["open loop"].x) == 60
    refused = marks["open loop: refused"]
    assert len(refused.x) == 20 and max(refused.y) < 0
    assert "closed loop: refused" not in marks
    assert marks["closed loop"].marker.symbol != marks["open loop"].marker.symbol
    assert drawn.table[1] == {
        "load": "open loop", "answered": 60, "refused": 20, "median": "2.2 s",
        "p99": theme.format_seconds(4.12, ), "longest": "4.15 s",
    }  # fmt: skip


def test_the_sentence_compares_the_first_answers_with_the_last():
    drawn = waits({"closed loop": FLAT, "open loop": RISING}, kind="recorded", caption="Here.")
    flat, rising = drawn.takeaway.split(". ", 1)
    assert "the first tenth of the answers 200 ms, the last 200 ms (recorded)" in flat
    assert rising.startswith("Open loop: ") and "20 requests refused." in rising
    assert drawn.caption == "Here." and "recorded" in drawn.figure.layout.yaxis.title.text
    assert drawn.takeaway in drawn.alt


def test_many_requests_keep_their_extremes():
    many = [Asked(0.01 * n, 0.1) for n in range(4000)]
    many[1234] = Asked(12.34, 9.0)
    (marks,) = waits({"a": many}).figure.data
    assert len(marks.x) <= theme.MAX_MARKS and 9.0 in marks.y


def test_no_answer_at_all_is_an_error():
    with pytest.raises(ValueError, match="at least one request"):
        waits({"a": [Asked(0.0, None)]})
    said = waits({"a": FLAT, "b": [Asked(0.0, None)]}).takeaway
    assert "B: no request was answered." in said
