"""Traces: what a file says is what the engine is asked."""

from __future__ import annotations

import statistics

import pytest

from minserve.bench.heavy_tail import heavy_tail, log_normal_lengths
from minserve.bench.mooncake import TraceEntry, read_trace, trace_text, trace_traffic


def test_a_trace_survives_its_file(tmp_path):
    path = tmp_path / "trace.jsonl"
    entries = (TraceEntry(0, 600, 3, (7, 8)), TraceEntry(250, 12, 1, (7,)))
    path.write_text(trace_text(entries))
    assert read_trace(path) == entries


@pytest.mark.parametrize("line", ["{}", "[1]", '{"timestamp": 0}', "no json"])
def test_a_line_that_is_no_request_is_named(tmp_path, line):
    path = tmp_path / "trace.jsonl"
    path.write_text(trace_text([TraceEntry(0, 1, 1, (0,))]) + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_trace(path)


def test_an_entry_without_an_id_for_every_block_is_refused():
    with pytest.raises(ValueError, match="hash ids"):
        TraceEntry(0, 513, 1, (0,))


def test_equal_ids_are_equal_tokens_and_others_are_not():
    entries = (
        TraceEntry(0, 600, 3, (7, 8)),
        TraceEntry(0, 12, 1, (7,)),
        TraceEntry(0, 12, 1, (9,)),
    )
    a, b, c = (one.prompt_token_ids for one in trace_traffic(entries, 4096).requests)
    assert len(a) == 600 and a[:12] == b != c
    assert all(2 <= token < 4096 for token in a)


def test_arrivals_keep_the_times_of_the_trace():
    entries = [TraceEntry(at, 4, 1, (at,)) for at in (1000, 1500, 3000)]
    traffic = trace_traffic(entries, 100)
    assert traffic.rate_per_s == 1.0
    gaps = [one.gap / traffic.rate_per_s for one in traffic.requests]
    assert gaps == [0.0, 0.5, 1.5]
    assert trace_traffic(entries[:1], 100).rate_per_s is None


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0])
def test_the_spread_leaves_the_mean_alone(spread):
    lengths = log_normal_lengths(256, 16, spread, 270, 1)
    assert statistics.mean(lengths) == pytest.approx(16, rel=0.03)
    assert min(lengths) >= 1 and max(lengths) <= 270
    assert (statistics.pstdev(lengths) > 0.4 * 16 * spread) == (spread > 0)


def test_the_order_is_the_seeds():
    assert heavy_tail(seed=1) == heavy_tail(seed=1) != heavy_tail(seed=2)
    lengths = [sorted(one.output_length for one in heavy_tail(seed=seed)) for seed in (1, 2)]
    assert lengths[0] == lengths[1]
