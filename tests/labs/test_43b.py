"""Chapter 43b teaches what is so: the declared effect, no effect from nothing, and the reversal."""

from __future__ import annotations

import json

import pytest
from labs.chapters import LABS, run_cells

from minserve.bench.runs.sessions import IDLE, run_sessions
from minserve.loading import load_model
from widgets.figures.memory.tier_latency import crossover, tier_latency
from widgets.panels import Compare
from widgets.workers import raise_panel_errors

CHAPTER = "43b_tiers"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


@pytest.fixture(scope="module")
def chapter():
    return run_cells(CHAPTER, "workload")


def flipped(chapter, pages=(0, 260)):
    """Both sides for the 8B on the modelled GPU, in as many pages as here."""
    page = 16 * chapter["LLAMA"].spec().kv_bytes_per_token(2)
    base = chapter["ALONE"].with_values({"memory.kv_bytes": 44 * page})
    sides = tuple(base.with_values({"memory.host_bytes": each * page}) for each in pages)
    panel = Compare(
        base,
        sides,
        chapter["workload"](),
        virtual=chapter["CostModel"](
            chapter["GPU"], "bfloat16", 0.5, 2e-4, chapter["HostLink"](chapter["BUS"])
        ),
        shape=chapter["LLAMA"],
        clock="virtual",
    )
    panel.run()
    return panel.result


def test_the_headline_effect_passes_its_threshold_in_counts_and_in_virtual_time(chapter):
    result = flipped(chapter)
    without, with_host = (trace.totals for trace in result.traces.values())
    computed = [totals.prefill_tokens + totals.decode_tokens for totals in (without, with_host)]
    assert computed[1] < 0.6 * computed[0]
    # Nearly all of every history comes back from one tier or the other.
    assert with_host.loaded_tokens > 0.7 * chapter["SESSIONS"] * chapter["HISTORY"]
    assert not without.loaded_tokens
    # What the prose says: a history fills whole pages, so that of a second turn only the question
    # is computed.
    assert chapter["HISTORY"] % 16 == 0
    assert with_host.loaded_tokens == without.prefill_tokens - with_host.prefill_tokens
    assert with_host.duration_s < without.duration_s


@pytest.mark.parametrize("pages", [0, 260])
def test_a_tier_against_itself_shows_no_effect(chapter, pages):
    result = flipped(chapter, (pages, pages))
    ratios = {name: each.verdict.ratio.median for name, each in result.metrics.items()}
    assert ratios == dict.fromkeys(ratios, 1.0)


def test_sessions_come_back_with_identical_tokens_from_every_tier(tmp_path):
    page = 131_072
    tiers = {"memory.kv_bytes": 6 * page, "scheduling.max_model_len": 64}
    host = tiers | {"memory.host_bytes": 6 * page}
    sides = (
        tiers | {"memory.prefix_cache": "off"},
        tiers,
        host,
        host | {"memory.disk_bytes": 64 * page, "memory.disk_path": str(tmp_path)},
    )
    runs = [run_sessions(load_model("zoo/base", IDLE.with_values(s)), 8, 33) for s in sides]
    assert len({run.token_ids for run in runs}) == 1
    kept = [len(run.where) - run.held["gone"] for run in runs]
    assert kept[0] == 0 < kept[1] < kept[2] < kept[3] == 8
    assert runs[3].held["disk"] and runs[3].disk_bytes
    assert all(runs[3].cached_tokens) and runs[3].trace.totals.loaded_tokens
    assert not list(tmp_path.glob("*/*")), "closing the engine deletes its files"


@pytest.mark.slow
def test_break_it_reverses_the_sign_inside_its_range_and_every_slider_moves_the_headline():
    chapter = run_cells(CHAPTER, "workload", "break")
    near, far, playground = chapter["near"].result, chapter["far"].result, chapter["playground"]
    # Over its own bus the host never loses, over a network it does until the step is full.
    assert min(near.gains.values()) >= 1 and near.gains[2000] > 5
    assert far.gains[192] < 0.8 and far.gains[2000] > 1.5
    assert 256 < far.crossover < 384
    nearest = min(chapter["guess"].asked.choices, key=lambda choice: abs(choice - far.crossover))
    assert nearest == 300
    playground.run()
    start = playground.result
    assert start.verdict.outcome == "worse"
    for name, value in {"history": 1024, "question": 256}.items():
        control = playground.controls[name]
        before, control.value = control.value, value
        playground.run()
        assert abs(playground.result.verdict.ratio.median - start.verdict.ratio.median) > 0.05, name
        control.value = before
    raise_panel_errors()


@pytest.mark.slow
def test_the_modelled_disk_pays_from_the_history_that_is_named():
    chapter = run_cells(CHAPTER, "workload", "break", "disk")
    drawn = chapter["on_a_gpu"]
    tokens, _ = crossover(drawn, "disk")
    assert 1450 < tokens < 1550 and crossover(drawn, "host") is None
    assert "near 1,500 tokens" in tier_latency(drawn).takeaway
    longest = drawn[-1]
    gain = longest["recompute"]["median"] / longest["disk"]["median"]
    assert 1 < gain < 1.05, "hardly faster beyond"
    # For each page that is loaded, two others are written.
    pages = longest["history"] // 16
    each_s = (longest["disk"]["median"] - drawn[0]["recompute"]["median"]) / pages
    page_s = 16 * chapter["LLAMA"].spec().kv_bytes_per_token(2) / chapter["DISK"]
    assert 2.9 < each_s / page_s < 3.4


def test_a_thousand_sessions_are_counted_as_they_were_recorded():
    """What the chapter counts on the virtual clock is what the real engine did."""
    recorded = json.loads((LABS / "recorded" / "43b_sessions.json").read_text())
    assert recorded["num_sessions"] == 1000 and recorded["same_tokens"]
    assert recorded["machine"]["cpu_model"] and recorded["date"]
    counted = run_cells(CHAPTER, "workload", "thousand")["thousand"]
    for side, run in zip(recorded["sides"], counted.values(), strict=True):
        assert "".join("s" if tier == "disk" else tier[0] for tier in run.where) == side["where"]
        assert run.trace.totals.loaded_tokens == side["loaded_tokens"]
    kept = [1000 - run.held["gone"] for run in counted.values()]
    found = [sum(tokens >= 16 for tokens in run.cached_tokens) for run in counted.values()]
    assert kept[0] < kept[1] < kept[2] == 1000
    # What is kept while all are idle is not what returning sessions find.
    assert found[0] < found[1] < 0.5 * kept[1] and found[2] == 1000


def test_the_recorded_histories_come_sooner_from_the_host_and_later_from_disk():
    recorded = json.loads((LABS / "recorded" / "43b_sessions.json").read_text())
    for entry in recorded["by_length"]:
        assert entry["host"]["median"] < entry["disk"]["median"] < entry["recompute"]["median"]
