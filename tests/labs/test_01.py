"""Chapter 01 teaches what is so: the declared effect, no effect from nothing, and the reversal."""

from __future__ import annotations

import pytest
from labs.chapters import run_cells

from widgets.metrics import in_time
from widgets.panels import Compare
from widgets.workers import raise_panel_errors

CHAPTER = "01_serve_it"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


def chapter(*tags):
    """The server and its client, without the loads; then the cells with these tags."""
    names = {}
    exec("from minserve import EngineConfig, SchedulingConfig", names)
    exec("from minserve.bench.workloads import conversations, length_draws", names)
    exec("from minserve.bench.workloads.traffic import traffic", names)
    return run_cells(CHAPTER, *tags, names=names)


def ratio(result, metric):
    return result.metrics[metric].verdict.ratio.median


def test_the_headline_effect_passes_its_threshold_and_memory_does_not_move():
    names = chapter("workload")
    compare = names["compare"]
    compare.run()
    result = compare.result
    assert ratio(result, "ttft_p99_s") < 1 / 10
    assert ratio(result, "peak_kv_bytes") == 1
    assert 0.98 < ratio(result, "output_tokens_per_s") < 1
    assert ratio(result, "in_time") > 3
    unbounded, bounded = (trace.totals for trace in result.traces.values())
    assert unbounded.refused == 0 and unbounded.peak_waiting > 100
    assert bounded.peak_waiting == 8
    # "About one request in six" is refused.
    assert 1 / 7.5 < bounded.refused / 1000 < 1 / 5.5
    # The estimate's words: 33.1 come, 27.6 are answered, 330 wait, 12 s.
    capacity = names["MODELLED_CAPACITY"]
    assert capacity == pytest.approx(27.6, abs=0.05) and 1.2 * capacity == pytest.approx(
        33.1, abs=0.1
    )
    assert 0.2 * capacity * 60 == pytest.approx(331, abs=2) and pytest.approx(12) == 0.2 * 60
    assert 8 / capacity == pytest.approx(0.3, abs=0.02)
    raise_panel_errors()


@pytest.mark.parametrize("limit", [None, 8])
def test_a_bound_against_itself_shows_no_effect(limit):
    names = chapter("workload")
    side = names["BASE"].with_values({"scheduling.max_queued_requests": limit})
    panel = Compare(
        side, (side, side), names["chats"](count=200), metrics=[in_time(1.0)],
        virtual=names["H100"], shape=names["LLAMA"], clock="virtual",
    )  # fmt: skip
    panel.run()
    result = panel.result
    assert {name: ratio(result, name) for name in result.metrics} == dict.fromkeys(
        result.metrics, 1.0
    )
    raise_panel_errors()


@pytest.mark.slow
def test_break_it_reverses_the_sign_inside_its_range_and_every_slider_moves_the_headline():
    names = chapter("workload", "predict", "break")
    sweep, playground = names["sweep"].result, names["playground"]
    assert all(sweep.gains[load] < 1 for load in (0.5, 0.7, 0.9))
    assert sweep.gains[0.7] < 0.95 and sweep.gains[1.2] > 1.5
    assert 0.9 < sweep.crossover < 1.1
    choices = names["crossover"].asked.choices
    assert min(choices, key=lambda choice: abs(choice - sweep.crossover)) == 1.0
    playground.run()
    start = playground.result
    assert start.verdict.outcome == "worse"
    values = {"scheduling.max_queued_requests": 40, "burstiness": 1.0, "rate_per_s": 40.0}
    for name, value in values.items():
        control = playground.rate if name == "rate_per_s" else playground.controls[name]
        before, control.value = control.value, value
        playground.run()
        moved = playground.result.verdict.ratio.median / start.verdict.ratio.median
        assert abs(moved - 1) > 0.01, name
        control.value = before
    raise_panel_errors()


def test_the_server_of_the_chapter_says_what_its_clients_saw():
    names = run_cells(CHAPTER, "server", "load")
    opened, limited = names["opened"], names["limited"]
    assert not opened.of("refused") and len(opened.of("completed")) == len(opened.records)
    done, refused = limited.of("completed"), limited.of("refused")
    assert len(done) + len(refused) == len(limited.records)
    assert names["after"]["minserve:request_refused_total"] == len(refused)
    # A load generator with few connections sends late; from the schedule nothing is hidden.
    few = names["few"].records
    waited = [one.metrics.ttft_s - one.ttft_from_send_s for one in few]
    assert min(waited) >= 0 and max(waited) > 0
    raise_panel_errors()
