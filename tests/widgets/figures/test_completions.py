from __future__ import annotations

import statistics

import pytest

from minserve.trace import RunTrace
from tests.widgets.figures import runs
from widgets import theme
from widgets.figures import completions


def test_every_finished_request_is_a_mark_at_its_length_and_time(plain: RunTrace) -> None:
    drawn = completions(plain)
    wanted = sorted((r.metrics.num_output_tokens, r.metrics.e2e_s) for r in plain.requests)
    marks = drawn.figure.data[0]
    assert list(zip(marks.x, marks.y, strict=True)) == wanted
    assert [row["output tokens"] for row in drawn.table] == [tokens for tokens, _ in wanted]
    mean = statistics.fmean(seconds for _, seconds in wanted)
    assert theme.format_seconds(mean) in drawn.takeaway
    assert theme.format_seconds(max(seconds for _, seconds in wanted)) in drawn.takeaway
    assert drawn.figure.layout.xaxis.type == drawn.figure.layout.yaxis.type == "log"


def test_more_than_a_figure_can_carry_are_thinned_and_still_counted(
    monkeypatch: pytest.MonkeyPatch, plain: RunTrace
) -> None:
    monkeypatch.setattr(theme, "MAX_MARKS", 2)
    drawn = completions(plain)
    assert len(drawn.figure.data[0].x) <= 2 < len(plain.requests)
    assert theme.format_count(len(plain.requests), "request") in drawn.takeaway


def test_a_run_in_which_nothing_ended_says_so() -> None:
    assert "no request has ended" in completions(RunTrace()).takeaway
    both = completions({"none": RunTrace(), "some": runs.with_cache()})
    assert {row["side"] for row in both.table} == {"some"}
