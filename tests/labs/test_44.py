"""Chapter 44 teaches what is so: what is found is not computed, hits hang on order and pool."""

from __future__ import annotations

import pytest
from labs.chapters import run_cells

from widgets.panels import Compare
from widgets.workers import raise_panel_errors

CHAPTER = "44_prefix_reuse"
SWITCH = "memory.prefix_cache"


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


@pytest.fixture(scope="module")
def chapter():
    return run_cells(CHAPTER, "workload")


def compared(chapter, kinds=("off", "radix"), **workload):
    """Both sides on the modelled GPU."""
    sides = tuple(chapter["OFF"].with_values({SWITCH: kind}) for kind in kinds)
    panel = Compare(
        chapter["OFF"], sides, chapter["workload"](**workload), headline=chapter["TTFT"],
        virtual=chapter["A100"], shape=chapter["LLAMA"], clock="virtual",
    )  # fmt: skip
    panel.run()
    return panel.result


def ratio(result, metric):
    return result.metrics[metric].verdict.ratio.median


def test_the_headline_effect_passes_its_threshold_in_counts_and_in_virtual_time(chapter):
    result = compared(chapter)
    off, radix = result.traces.values()
    assert ratio(result, "own_ttft_s") < 1 / 5
    assert ratio(result, "peak_kv_bytes") == 1.0
    # One whole prompt, and four times the tenth that is not shared.
    assert off.totals.prefill_tokens == 5 * 1400
    assert radix.totals.prefill_tokens == 1400 + 4 * 140
    assert radix.totals.hit_tokens == 4 * 1260
    warm = [one.metrics for one in radix.requests][1:]
    assert all(one.num_prompt_tokens > 5 * (1400 - one.num_cached_tokens) for one in warm)
    assert radix.totals.sampled_tokens == off.totals.sampled_tokens


def test_tokens_are_identical_on_the_real_engine(chapter):
    sides = tuple(chapter["OFF"].with_values({SWITCH: kind}) for kind in ("off", "radix"))
    panel = Compare(chapter["OFF"], sides, chapter["workload"](tokens=200, count=3), rounds=3,
                    headline=chapter["TTFT"])  # fmt: skip
    panel.run()
    assert panel.result.agreement.held
    assert panel.result.traces["on"].totals.hit_tokens == 2 * 180
    raise_panel_errors()


@pytest.mark.parametrize("kind", ["off", "hash", "radix"])
def test_the_switch_against_itself_shows_no_effect(chapter, kind):
    result = compared(chapter, (kind, kind))
    assert {name: ratio(result, name) for name in result.metrics} == dict.fromkeys(
        result.metrics, 1.0
    )


def test_nothing_shared_is_nothing_found(chapter):
    result = compared(chapter, shared=0.0)
    assert ratio(result, "own_ttft_s") == ratio(result, "flops") == 1.0
    assert result.verdict.outcome == "none"
    assert result.traces["on"].totals.hit_tokens == 0


def test_the_gain_and_the_hit_rate_grow_with_the_shared_part(capsys):
    chapter = run_cells(CHAPTER, "workload", "predict", "share", "kinds")
    gain = [spread.median for spread in chapter["gain"].result.points.values()]
    hits = [spread.median for spread in chapter["hits"].result.points.values()]
    assert gain[0] == 1.0 and gain == sorted(gain, reverse=True) and gain[-1] < 1 / 5
    assert hits[0] == 0.0 and hits == sorted(hits) and hits[-1] > 0.7
    # Whole pages only, and the larger they are the less: what the tree finds stays the same.
    found = {
        (kind, size): chapter["found_by"](kind, size)
        for kind in ("hash", "radix")
        for size in (16, 64, 256)
    }
    for (kind, size), totals in found.items():
        whole = 1260 // size * size
        assert totals.hit_tokens == 4 * (whole if kind == "hash" else 1260)
        assert totals.copied_blocks == (0 if kind == "hash" else 4)
    raise_panel_errors()


def test_break_it_ends_the_gain_inside_its_range_and_every_slider_moves_the_headline():
    chapter = run_cells(CHAPTER, "workload", "break")
    sweep, playground = chapter["sweep"].result, chapter["playground"]
    gain = {files: spread.median for files, spread in sweep.points.items()}
    assert all(gain[files] < 1 / 5 for files in (1, 2, 3, 4, 5))
    assert gain[7] == gain[8] == gain[10] == 1.0
    assert 6 <= sweep.crossover <= 7
    playground.run()
    start = playground.result
    lost = start.traces["radix"].totals
    assert start.verdict.outcome == "none"
    assert lost.hit_tokens == 0 and lost.evicted_blocks > 1000, "it costs evictions, for nothing"
    changes = {"scheduling.order": "lpm", "order": "grouped", "files": 3}
    for name, value in changes.items():
        control = playground.controls[name]
        before, control.value = control.value, value
        playground.run()
        assert playground.result.verdict.ratio.median < 1 / 5, name
        control.value = before
    playground.controls["files"].value = 3
    playground.controls["shared"].value = 0.5
    playground.run()
    assert 1 / 5 < playground.result.verdict.ratio.median < 0.9, "half shared is half the gain"
    raise_panel_errors()


def test_the_tree_holds_the_system_prompt_for_all_and_evicts_leaves_first():
    chapter = run_cells(CHAPTER, "workload", "predict", "tree")
    tree = chapter["tree"]
    last = len(tree.snapshots) - 1
    bars = [bar for bar in tree.bars(last) if bar.held]
    roots = [bar for bar in bars if bar.start == 0]
    assert len(roots) == 1 and roots[0].readers == 15
    assert tree.snapshots[last].evicted_pages > 0
    # Nothing is evicted while anything that continues it is held.
    ends = {bar.run.spots[-1].number for bar in tree.bars(last) if bar.evicted}
    parents = [bar.run.spots[0].parent for bar in bars]
    assert not ends & {spot.number for spot in parents if spot is not None}
    functions = [bar for bar in bars if bar.readers == 5]
    assert len(functions) == 3 and not any(bar.evicted for bar in functions)
    raise_panel_errors()
