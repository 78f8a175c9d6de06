from __future__ import annotations

import pytest

from minserve.trace import RunTrace
from widgets import theme
from widgets.figures import recompute_triangle, typed, typewriters
from widgets.figures.time.triangle import AGAIN, FIRST, KEPT


def cells(figure, name: str, panel: int) -> list[int]:
    axis = "x" if panel == 0 else f"x{panel + 1}"
    return [n for t in figure.data if t.name == name and t.xaxis == axis for n in t.x]


def test_cells_are_the_tokens_each_step_computed(off: RunTrace, on: RunTrace) -> None:
    drawn = recompute_triangle({"off": off, "on": on})
    for panel, trace in enumerate((off, on)):
        totals = trace.totals
        again, first = cells(drawn.figure, AGAIN, panel), cells(drawn.figure, FIRST, panel)
        assert sum(again) == totals.recomputed_tokens
        assert sum(again) + sum(first) == totals.prefill_tokens + totals.decode_tokens
    # With a cache, what a step does not compute is kept: the same triangle, read not computed.
    assert sum(cells(drawn.figure, KEPT, 1)) == sum(cells(drawn.figure, AGAIN, 0))


def test_takeaway_is_the_bargain_in_counted_bytes_and_flops(off: RunTrace, on: RunTrace) -> None:
    text = recompute_triangle({"off": off, "on": on}).takeaway
    assert text.startswith(f"{theme.format_bytes(on.totals.peak_kv_bytes_used)} of keys and values")
    assert f"{theme.format_flops(off.totals.flops - on.totals.flops)} avoided" in text


def test_off_against_off_claims_no_bargain(off: RunTrace) -> None:
    assert "avoided" not in recompute_triangle({"A": off, "B": off}).takeaway


def test_a_preempted_request_shows_what_it_computed_again(preempting: RunTrace) -> None:
    again = {}
    for step in preempting.steps:
        for part in step.requests:
            again[part.request_id] = again.get(part.request_id, 0) + part.num_recomputed
    victim = max(again, key=lambda name: again[name])
    drawn = recompute_triangle(preempting, request=victim)
    assert sum(cells(drawn.figure, AGAIN, 0)) == again[victim] > 0


def test_an_unknown_request_is_refused_with_the_known_ones(on: RunTrace) -> None:
    with pytest.raises(ValueError, match="request-0"):
        recompute_triangle(on, request="nobody")
    with pytest.raises(ValueError, match="no step"):
        recompute_triangle(RunTrace())


def test_typewriters_deliver_the_outputs_at_the_ends_of_their_steps(
    off: RunTrace, on: RunTrace
) -> None:
    found = typed({"off": off, "on": on})
    for name, trace in (("off", off), ("on", on)):
        tokens = [token for s in trace.steps for p in s.requests for token in p.new_token_ids]
        assert [d.token_id for d in found[name]] == tokens
        metrics = trace.requests[0].metrics
        assert found[name][0].at_s == pytest.approx(metrics.ttft_s)
        assert found[name][-1].at_s == pytest.approx(metrics.e2e_s)
    drawn = typewriters({"off": off, "on": on})
    assert [line.y[-1] for line in drawn.figure.data if line.mode == "lines"] == [10, 10]
    assert len(drawn.table) == 20


def test_typewriters_say_how_pace_changes(off: RunTrace, on: RunTrace) -> None:
    text = typewriters({"off": off, "on": on}).takeaway
    assert "first tokens" not in text, "ten gaps are too few for a beginning and an end"
    assert "10 tokens in" in text


def test_lines_that_end_together_keep_their_labels_apart(off: RunTrace) -> None:
    drawn = typewriters({"A": off, "B": off})
    places = [mark.textposition for mark in drawn.figure.data if mark.text]
    assert len(places) == len(set(places)) == 2


def test_a_few_steps_are_counted_in_whole_steps(off: RunTrace) -> None:
    few = RunTrace()
    for step in off.steps[:2]:
        few.append(step)
    assert recompute_triangle(few).figure.layout.yaxis.dtick == 1
