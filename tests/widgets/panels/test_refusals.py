"""A side with a bounded queue refuses requests: what is counted, drawn and compared then."""

from __future__ import annotations

import pytest

from minserve.bench.workloads.traffic import at_once, fixed_length
from minserve.hardware import DEVICES
from minserve.virtual import CostModel
from tests.widgets.panels.tiny_runs import BASE
from widgets.figures.strips import strips
from widgets.metrics import METRICS, in_time
from widgets.panels import Compare
from widgets.panels.comparison.result import identical_tokens

PLACES = BASE.with_values({"scheduling.max_num_seqs": 2})
BOUNDED = {"scheduling.max_queued_requests": 3}
COST = CostModel(DEVICES["T4"], "float16", efficiency=0.5, overhead_s=1e-3)


def burst(count=9):
    return at_once([[5, 6, 7]] * count, [fixed_length(6)] * count)


def test_refused_requests_are_counted_and_the_others_have_the_same_tokens(headless):
    panel = Compare(PLACES, BOUNDED, burst(), headline="ttft_p99_s", rounds=3)
    panel.run()
    result = panel.result
    assert result.counts["on"].refused == 4 and result.counts["off"].refused == 0
    assert result.counts["on"].requests == 5 and result.counts["off"].requests == 9
    assert result.counts["on"].words()["requests refused"] == "4"
    assert "requests refused" not in result.counts["off"].words()
    assert result.agreement.held
    assert "30 tokens compared" in result.agreement.sentence
    assert "4 refused requests left out" in result.agreement.sentence
    assert result.facts()["on: requests refused"] == 4
    assert "off: requests refused" not in result.facts()


def test_the_price_is_drawn():
    panel = Compare(PLACES, BOUNDED, burst(), headline="ttft_p99_s", virtual=COST, clock="virtual")
    panel.run()
    panel.wait()
    result = panel.result
    assert result.metrics["peak_waiting"].quoted == {"off": 7.0, "on": 3.0}
    figure = strips(result.traces, METRICS["ttft_p99_s"])
    assert [row["requests refused"] for row in figure.table] == ["0", "4"]
    assert "requests refused 4" in figure.alt


def test_answers_in_time_are_a_running_total_whose_end_is_the_value():
    panel = Compare(PLACES, BOUNDED, burst(), headline="ttft_p99_s", virtual=COST, clock="virtual")
    panel.run()
    panel.wait()
    trace = panel.result.traces["off"]
    took = sorted(one.metrics.ttft_s for one in trace.requests)
    for limit in (took[0] / 2, took[0], took[4], took[-1]):
        metric = in_time(limit)
        expected = sum(each <= limit for each in took)
        assert metric.read(trace) == expected
        samples = metric.samples(trace)
        assert [value for _, value in samples] == [float(n + 1) for n in range(expected)]
    assert metric.label.startswith("answers that began within")


@pytest.mark.parametrize(
    ("ours", "theirs", "held"),
    [
        (((1, 2), (3,)), ((1, 2), ()), True),
        (((1, 2), (3,)), ((1, 9), ()), False),
        (((), (3,)), ((1, 2), (3,)), True),
        (((1, 2), (3,)), ((1, 2), (4,)), False),
    ],
)
def test_what_one_side_refused_is_left_out_and_nothing_else(ours, theirs, held):
    assert identical_tokens([(ours, theirs)]).held is held
