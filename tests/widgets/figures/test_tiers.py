"""Lower tiers: what loading gains, and what a returning session still finds."""

from __future__ import annotations

import math

import pytest

from widgets.figures import returning_sessions, tier_latency
from widgets.figures.memory.returning_sessions import outcomes


def length(history: int, recompute: float, host: float, disk: float) -> dict[str, object]:
    ways = {"recompute": recompute, "host": host, "disk": disk}
    return {"history": history} | {
        way: {"min": 0.9 * s, "median": s, "max": 1.2 * s} for way, s in ways.items()
    }


LENGTHS = [length(1024, 0.136, 0.0129, 0.16), length(16, 0.0045, 0.0026, 0.0031)]


def test_a_line_per_way_with_its_rounds_on_decimal_axes() -> None:
    drawn = tier_latency(LENGTHS, caption="Recorded.")
    assert [trace.name for trace in drawn.figure.data] == [
        "computed again", "loaded from the host", "loaded from disk", "crossover",
    ]  # fmt: skip
    assert len({trace.marker.symbol for trace in drawn.figure.data}) == 4
    computed = drawn.figure.data[0]
    assert list(computed.x) == [16, 1024] and list(computed.y) == [4.5, 136.0]
    assert computed.error_y.array[1] == pytest.approx(0.2 * 136)
    low, high = drawn.figure.layout.yaxis.range
    assert 10**low < 0.9 * 2.6 and 10**high > 1.2 * 160
    assert "100" in drawn.figure.layout.yaxis.ticktext and math.isfinite(high)


def test_the_history_at_which_a_tier_takes_as_long_as_computing_is_marked_and_named() -> None:
    # Computing grows by 4 and loading by 1 from 100 to 400 tokens: equal where both take 20 ms.
    lengths = [length(100, 0.01, 0.001, 0.02), length(400, 0.04, 0.002, 0.02)]
    drawn = tier_latency(lengths)
    assert drawn.takeaway.endswith(
        "Loading from disk and computing take the same time near 200 tokens."
    )
    marked = drawn.figure.data[-1]
    assert marked.name == "crossover"
    assert (list(marked.x), list(marked.y)) == ([pytest.approx(200)], [pytest.approx(20)])
    # The host is faster at every length: nothing to mark.
    without = tier_latency([each | {"disk": each["host"]} for each in lengths])
    assert "same time" not in without.takeaway and without.figure.data[-1].name != "crossover"


def test_gains_and_losses_are_ratios_above_one() -> None:
    words = tier_latency(LENGTHS).takeaway
    assert "1,024 tokens" in words and "10.5x sooner from the host (12.9 ms)" in words
    assert "1.18x later from disk (160 ms)" in words and "computed again (136 ms)" in words
    with pytest.raises(ValueError, match="at least one length"):
        tier_latency([])


WHERE = ["gone", "gone", "host", "host", "device", "device"]
ORDER = [5, 2, 0, 3, 4, 1]
FOUND = [0, 1, 32, 0, 1, 32]


def test_every_session_meets_one_outcome() -> None:
    met = outcomes(WHERE, FOUND, ORDER, page=16)
    assert met == ["found", "found", "gone", "evicted", "evicted", "gone"]
    drawn = returning_sessions({"host": WHERE}, {"host": FOUND}, ORDER)
    assert drawn.takeaway == (
        "Host: 4 of 6 sessions were kept while idle, and 2 found their history: earlier returns "
        "had evicted 2."
    )
    assert sum(sum(bar.y) for bar in drawn.figure.data) == 6
    assert len({bar.marker.pattern.shape for bar in drawn.figure.data}) == 3


def test_sessions_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="one of each for every session"):
        outcomes(WHERE, FOUND, [0, 1, 2], page=16)
    with pytest.raises(ValueError, match="at least one side"):
        returning_sessions({}, {}, [])
