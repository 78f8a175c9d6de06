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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = runs.many_requests()
    monkeypatch.setattr(theme, "MAX_MARKS", 12)
    drawn = completions(many)
    marks = drawn.figure.data[0]
    assert len(marks.x) <= 12 < len(many.requests)
    assert theme.format_count(len(many.requests), "request") in drawn.takeaway
    every = [r.metrics for r in many.requests]
    assert max(marks.x) == max(one.num_output_tokens for one in every) == 60
    assert max(marks.y) == max(one.e2e_s for one in every)
    assert "12 of 60 requests drawn; the largest and smallest are kept" in drawn.caption


def test_a_run_in_which_nothing_ended_says_so() -> None:
    assert "no request has ended" in completions(runs.without_metrics()).takeaway
    both = completions({"none": RunTrace(), "some": runs.with_cache()})
    assert {row["side"] for row in both.table} == {"some"}
