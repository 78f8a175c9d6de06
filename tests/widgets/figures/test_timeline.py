from __future__ import annotations

import itertools

import pytest

from minserve.trace import RunTrace
from tests.widgets.figures import runs
from widgets import theme
from widgets.figures import timeline
from widgets.figures.time.lanes import lanes, spans
from widgets.figures.time.token_gaps import FROZEN, TICK


def marks(figure, name: str) -> int:
    return sum(len(trace.x) for trace in figure.data if trace.name == name)


@pytest.mark.parametrize("x", ["time", "step"])
def test_marks_are_the_counted_tokens(preempting: RunTrace, x: str) -> None:
    drawn = timeline(preempting, x=x)
    totals = preempting.totals
    assert sum(row["tokens"] for row in drawn.table) == totals.prefill_tokens + totals.decode_tokens
    assert sum(row["computed again"] for row in drawn.table) == totals.recomputed_tokens
    states = [row["state"] for row in drawn.table]
    assert states.count("decode") == totals.decode_tokens
    waited = marks(drawn.figure, FROZEN.label)
    assert marks(drawn.figure, "decode") + waited == totals.decode_tokens
    assert (waited > 0) == (x == "time"), "a slow step is no different from others by steps"
    assert marks(drawn.figure, theme.STATES["recompute"].label) == states.count("recompute")


def test_preemption_is_a_mark_of_its_own(preempting: RunTrace) -> None:
    drawn = timeline(preempting, x="step")
    preempted = [row for row in drawn.table if row["state"] == "preempted"]
    assert len(preempted) == preempting.totals.preemptions
    bars = [trace for trace in drawn.figure.data if trace.name == "preempted"]
    assert sum(len(bar.x) for bar in bars) == len(preempted)
    assert bars[0].marker.pattern.shape
    assert f"{preempting.totals.preemptions} preemptions" in drawn.takeaway
    assert f"{preempting.totals.recomputed_tokens} tokens again" in drawn.takeaway
    assert "preempted" in drawn.alt


def test_states_of_a_request_follow_each_other_without_overlap(preempting: RunTrace) -> None:
    run = preempting.snapshot()
    for lane in lanes(run):
        found = spans(lane, run)
        for before, after in itertools.pairwise(found):
            assert before.end_s <= after.start_s + 1e-12
            assert before.last < after.first
        assert found[-1].end_s <= run.steps[-1].end_s


def test_waiting_ends_when_the_request_is_first_scheduled(plain: RunTrace) -> None:
    run = plain.snapshot()
    for lane in lanes(run):
        waiting = [span for span in spans(lane, run) if span.state == "waiting"]
        assert lane.finished is not None
        metrics = lane.finished.metrics
        assert sum(s.end_s - s.start_s for s in waiting) == pytest.approx(metrics.queue_s or 0.0)


def test_a_chunk_carries_its_token_count(plain: RunTrace) -> None:
    texts = [
        text
        for trace in timeline(plain, x="step").figure.data
        if trace.name == "prefill"
        for text in trace.text
    ]
    assert "8" in texts or "5" in texts


def test_without_a_cache_steps_are_shown_as_computed_again(off: RunTrace) -> None:
    states = [row["state"] for row in timeline(off).table]
    assert states.count("recompute") == len(off) - 1
    assert "preempted" not in states


def test_two_runs_are_two_panels_with_one_legend(off: RunTrace, on: RunTrace) -> None:
    drawn = timeline({"off": off, "on": on})
    named = [trace.name for trace in drawn.figure.data if trace.showlegend]
    assert len(named) == len(set(named))
    assert {row["side"] for row in drawn.table} == {"off", "on"}
    assert [note.text for note in drawn.figure.layout.annotations] == ["off", "on"]
    assert drawn.figure.layout.annotations[0].font.color == theme.SIDES["A"]


def test_long_runs_are_merged_and_many_lanes_left_out_in_words() -> None:
    lengths = [3] * 60
    trace = runs.echo_run(
        {"scheduling.max_num_seqs": 30, "scheduling.max_num_batched_tokens": 40},
        lengths,
        [20] * 60,
        num_blocks=256,
    )
    drawn = timeline(trace)
    assert all(len(mark.x) <= theme.MAX_MARKS for mark in drawn.figure.data)
    assert "40 of 60 requests drawn; the largest and smallest are kept" in drawn.caption
    assert "drawn as one mark" in drawn.caption
    assert len({row["request"] for row in drawn.table}) == 40


def test_a_run_without_detail_is_refused_with_what_to_do(plain: RunTrace) -> None:
    with pytest.raises(ValueError, match=r"trace\.per_request"):
        timeline(runs.without_detail(plain))


def test_a_run_under_way_can_be_drawn(plain: RunTrace) -> None:
    partial = RunTrace(header=plain.header)
    for step in plain.steps[:4]:
        partial.append(step)
    assert sum(row["tokens"] for row in timeline(partial).table) == sum(
        step.num_tokens for step in plain.steps[:4]
    )
    assert timeline(RunTrace()).table == []


def test_a_ring_that_lost_its_oldest_steps_still_tells_decode_from_prefill(
    plain: RunTrace,
) -> None:
    kept = RunTrace(max_steps=6, header=plain.header)
    kept.restore(plain.totals, plain.steps, plain.requests)
    decodes = sum(row["state"] == "decode" for row in timeline(kept).table)
    assert decodes == sum(step.num_decode_tokens for step in kept.steps)


def test_a_window_shows_what_happened_in_it(preempting: RunTrace) -> None:
    first = preempting.steps[0].start_s
    begin, end = (preempting.steps[n].start_s - first for n in (8, 12))
    drawn = timeline(preempting, window_s=(begin, end))
    computed = [row for row in drawn.table if row["tokens"]]
    assert sum(row["tokens"] for row in computed) == sum(
        step.num_tokens for step in preempting.steps[8:12]
    )
    assert list(drawn.figure.layout.xaxis.range) == [1e3 * begin, 1e3 * end]
    with pytest.raises(ValueError, match="begin, end"):
        timeline(preempting, window_s=(2.0, 1.0))


def stalled(whole: bool) -> RunTrace:
    """Three chats, and a long prompt in the middle: read in one step, or in chunks."""
    budget = {"scheduling.max_num_batched_tokens": 128 if whole else 12}
    return runs.echo_run(
        {**budget, "scheduling.enable_chunked_prefill": not whole, "scheduling.max_num_seqs": 4},
        (4, 4, 4, 4, 90), (3, 14, 14, 14, 6), num_blocks=96,
    )  # fmt: skip


def names(figure) -> list:
    return [t for t in figure.data if t.type == "scatter" and t.mode == "text"]


def test_a_wait_for_a_token_is_hatched_and_the_longest_is_named() -> None:
    trace = stalled(whole=True)
    drawn = timeline({"whole": trace, "chunked": stalled(whole=False)})
    longest = trace.summary().itl_s.max
    named = names(drawn.figure)
    assert f"{theme.format_seconds(longest)} without a token" in named[0].text
    frozen = next(t for t in drawn.figure.data if t.name == FROZEN.label)
    assert frozen.marker.pattern.shape and max(frozen.x) == pytest.approx(1e3 * longest, rel=0.02)
    assert len(frozen.x) == 3, "all chats wait for the long prompt"
    ticks = [t for t in drawn.figure.data if t.name == TICK]
    assert len(ticks[0].x) == trace.totals.sampled_tokens
    top = drawn.figure.layout.yaxis.range[1]
    assert top < min(named[0].y) < -0.5, "the name has a row of its own, above the lanes"


def test_a_run_without_a_long_wait_names_none(on: RunTrace) -> None:
    assert not names(timeline(on).figure)


def test_lanes_left_out_are_the_same_on_both_sides_and_never_the_longest() -> None:
    trace = runs.many_requests()
    drawn = timeline({"a": trace, "b": runs.many_requests()}, max_lanes=12)
    lanes_of = {name: {r["request"] for r in drawn.table if r["side"] == name} for name in "ab"}
    assert lanes_of["a"] == lanes_of["b"] and len(lanes_of["a"]) == 12
    took = {
        lane.name: spans(lane, trace.snapshot())[-1].end_s
        - spans(lane, trace.snapshot())[0].start_s
        for lane in lanes(trace.snapshot())
    }
    assert {max(took, key=took.__getitem__), min(took, key=took.__getitem__)} <= lanes_of["a"]
