"""Chapter 43b teaches what is so: the declared effect, no effect from nothing, and the reversal."""

from __future__ import annotations

import json

import pytest
from labs.chapters import LABS, run_cells

from minserve.bench.runs.sessions import IDLE, run_sessions
from minserve.loading import load_model
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
    page = 16 * chapter["LLAMA"].kv_bytes_per_token(2)
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
    nvme, slow, playground = chapter["nvme"].result, chapter["slow"].result, chapter["playground"]
    ratios = {length: spread.median for length, spread in nvme.points.items()}
    assert ratios[128] > 1.1 and ratios[2000] < 0.9
    assert 384 < nvme.crossover < 512
    nearest = min(chapter["guess"].asked.choices, key=lambda choice: abs(choice - nvme.crossover))
    assert nearest == 400
    assert slow.crossover is None and min(s.median for s in slow.points.values()) > 1.5
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


def test_the_recorded_thousand_are_a_thousand_with_identical_tokens():
    recorded = json.loads((LABS / "recorded" / "43b_sessions.json").read_text())
    assert recorded["num_sessions"] == 1000 and recorded["same_tokens"]
    held = {side["name"]: 1000 - side["held"]["gone"] for side in recorded["sides"]}
    assert held["device"] < held["device, host"] < held["device, host, disk"] == 1000
    for side in recorded["sides"]:
        assert len(side["where"]) == 1000
    assert recorded["machine"]["cpu_model"] and recorded["date"]
