from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minserve.trace import RunTrace
from tests.widgets.figures import runs
from widgets import theme
from widgets.figures import kv_bytes, latency, stage_shares, throughput
from widgets.figures import sides as given_sides
from widgets.figures.sampling import note, quantiles, sampled, thinned
from widgets.figures.time.stage_bars import stage_seconds
from widgets.figures.time.token_rate import windows


def test_kv_bytes_draws_the_counted_bytes(preempting: RunTrace) -> None:
    drawn = kv_bytes(preempting)
    assert [row["allocated bytes"] for row in drawn.table] == [
        step.kv_bytes_allocated for step in preempting.steps
    ]
    allocated = next(t for t in drawn.figure.data if t.name.startswith("allocated"))
    used = next(t for t in drawn.figure.data if t.name.startswith("used"))
    assert all(u <= a for u, a in zip(used.y, allocated.y, strict=True))
    assert theme.format_bytes(preempting.totals.peak_kv_bytes_allocated) in drawn.takeaway
    assert allocated.line.shape == "hv"


def test_a_run_without_a_cache_allocates_nothing(off: RunTrace, on: RunTrace) -> None:
    assert max(step.kv_bytes_allocated for step in off.steps) > 0, "pages of one step, then freed"
    drawn = kv_bytes({"off": off, "on": on})
    rows = [row for row in drawn.table if row["side"] == "off"]
    assert (
        {row["allocated bytes"] for row in rows} == {row["reserved bytes"] for row in rows} == {0}
    )
    first = [t for t in drawn.figure.data if t.xaxis == "x"]
    assert {y for trace in first for y in trace.y} == {0}
    assert "no cache: nothing is kept" in " ".join(n.text for n in drawn.figure.layout.annotations)
    assert drawn.takeaway.startswith("Off kept no keys and values between steps. On allocated")


def test_a_pool_far_larger_than_its_use_is_named_not_drawn(plain: RunTrace) -> None:
    drawn = kv_bytes(plain)
    pool = plain.steps[0].kv_bytes_reserved
    named = [t.name for t in drawn.figure.data]
    if pool > 3 * plain.totals.peak_kv_bytes_allocated:
        assert not any(name.startswith("reserved") for name in named)
        assert theme.format_bytes(pool) in drawn.figure.layout.annotations[0].text
    assert theme.format_bytes(pool) in drawn.alt


def test_latency_marks_are_the_requests_and_medians_the_summarys(
    plain: RunTrace, preempting: RunTrace
) -> None:
    drawn = latency({"A": plain, "B": preempting}, ("ttft", "tpot", "itl"))
    summaries = {"A": plain.summary(), "B": preempting.summary()}
    for row in drawn.table:
        stats = getattr(summaries[row["side"]], f"{row['metric'].lower()}_s")
        assert row["count"] == stats.count
        assert row["p50 ms"] == pytest.approx(1e3 * stats.p50, abs=1e-3)
    curves = [t for t in drawn.figure.data if t.mode != "markers"]
    assert len(curves) == 6
    assert [len(curve.x) - 1 for curve in curves[:2]] == [4, 4]
    assert all(curve.y[-1] == 1 for curve in curves)
    assert {curve.line.dash for curve in curves} == {"dash"}, "modelled runs are dashed"
    assert {curve.line.color for curve in curves} == {theme.SIDES["A"], theme.SIDES["B"]}
    assert len({curve.marker.symbol for curve in curves}) == 2


def test_latency_of_nothing_says_so() -> None:
    trace = runs.without_metrics()
    assert latency(trace).takeaway == "No TTFT was measured; no TPOT was measured."
    assert latency(RunTrace()).takeaway == ""
    with pytest.raises(ValueError, match="expected one of ttft"):
        latency(RunTrace(), ("speed",))  # type: ignore[arg-type]


@pytest.mark.parametrize("window_s", [None, 0.001, 0.01, 1.0])
def test_throughput_windows_hold_all_tokens(plain: RunTrace, window_s: float | None) -> None:
    drawn = throughput(plain, window_s=window_s)
    line = drawn.figure.data[0]
    spans = [b - a for a, b in itertools.pairwise(line.x)]
    factor = 1e3 if "ms" in drawn.figure.layout.xaxis.title.text else 1.0
    tokens = sum(rate * span / factor for rate, span in zip(line.y, spans, strict=False))
    assert tokens == pytest.approx(plain.totals.sampled_tokens)
    assert len(line.x) <= theme.MAX_MARKS


def test_throughput_keeps_the_last_sliver_of_a_run(plain: RunTrace) -> None:
    side = given_sides.sides(plain)[0]
    end = plain.steps[-1].end_s - side.origin_s
    rates = windows(side, end / 7.2)
    assert len(rates) == 7
    with pytest.raises(ValueError, match="above 0"):
        throughput(plain, window_s=0)


def test_stage_shares_add_up_to_the_run(plain: RunTrace) -> None:
    stages = stage_seconds(plain.snapshot())
    assert sum(stages.values()) == pytest.approx(plain.totals.duration_s)
    drawn = stage_shares({"A": plain, "B": plain})
    for side in "AB":
        shares = [row["share"] for row in drawn.table if row["side"] == side]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
    per_step = stage_shares(plain, per="step")
    assert sum(trace.x[0] for trace in per_step.figure.data) == pytest.approx(
        1e3 * plain.totals.duration_s / len(plain)
    )
    with pytest.raises(ValueError, match="'share' or 'step'"):
        stage_shares(plain, per="second")  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.integers(5, 60))
def test_thinning_keeps_order_ends_and_the_extremes(values: list[float], limit: int) -> None:
    for choose in (thinned, sampled):
        kept = choose(list(enumerate(values)), limit, lambda item: item[1])
        assert len(kept) <= limit
        assert [place for place, _ in kept] == sorted({place for place, _ in kept})
        assert kept[0][0] == 0 and kept[-1][0] == len(values) - 1
        assert max(value for _, value in kept) == max(values)
        assert min(value for _, value in kept) == min(values)


def test_a_sample_too_small_for_its_extremes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 5"):
        sampled([1.0] * 9, 4, float)
    assert note(3, 3, "steps") == ""
    assert note(3, 1200, "steps", "off") == (
        "off: 3 of 1,200 steps drawn; the largest and smallest are kept."
    )


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=400), st.integers(20, 90))
def test_thinned_quantiles_are_quantiles(values: list[float], limit: int) -> None:
    ordered = sorted(values)
    found = quantiles(ordered, limit)
    assert len(found) <= limit
    assert found[-1] == (ordered[-1], 1.0)
    for value, share in found:
        assert value == ordered[round(share * len(ordered)) - 1]
