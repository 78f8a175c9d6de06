"""Chapter 44 teaches what is so: what is found is not computed, hits depend on order and pool."""

from __future__ import annotations

import pytest
from labs.chapters import run_cells

from widgets.figures.strips import strips
from widgets.metrics import Metric
from widgets.panels import Compare
from widgets.panels.exercises.exercise import load_exercise
from widgets.panels.exercises.judging import check
from widgets.scoring.questions import find_quantity
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
        metrics=(chapter["OWN"],), virtual=chapter["A100"], shape=chapter["LLAMA"], clock="virtual",
    )  # fmt: skip
    panel.run()
    return panel.result


def ratio(result, metric):
    return result.metrics[metric].verdict.ratio.median


def test_the_headline_effect_passes_its_threshold_in_counts_and_in_virtual_time(chapter):
    result = compared(chapter)
    off, radix = result.traces.values()
    # All wait for the first request, so the gain that a user feels is the smaller one.
    assert ratio(result, "own_ttft_s") < 1 / 5 < ratio(result, "ttft_p50_s") < 1 / 2
    assert ratio(result, "peak_kv_bytes") == 1.0
    # One whole prompt, and six times the tenth that is not shared.
    assert off.totals.prefill_tokens == 7 * 1000
    assert radix.totals.prefill_tokens == 1000 + 6 * 100
    assert radix.totals.hit_tokens == 6 * 900
    later = [one.metrics.num_cached_tokens for one in radix.requests]
    assert later == [0] + [900] * 6, "the first request finds an empty cache"
    assert radix.totals.sampled_tokens == off.totals.sampled_tokens


def test_tokens_are_identical_and_every_round_starts_with_an_empty_cache(chapter):
    sides = tuple(chapter["OFF"].with_values({SWITCH: kind}) for kind in ("off", "radix"))
    computed = Metric(
        "prefill", "prompt tokens computed", "lower", lambda run: run.totals.prefill_tokens, str
    )
    panel = Compare(chapter["OFF"], sides, chapter["workload"](tokens=200, count=3), rounds=3,
                    headline=chapter["TTFT"], metrics=(computed,))  # fmt: skip
    panel.run()
    assert panel.result.agreement.held
    values = panel.result.metrics["prefill"].values
    assert set(values["off"]) == {600.0}
    assert set(values["on"]) == {200.0 + 2 * 20}, "a round that profits from another computes less"
    raise_panel_errors()


@pytest.mark.parametrize("kind", ["off", "hash", "radix"])
def test_the_switch_against_itself_shows_no_effect(chapter, kind):
    result = compared(chapter, (kind, kind))
    assert {name: ratio(result, name) for name in result.metrics} == dict.fromkeys(
        result.metrics, 1.0
    )


def test_requests_wait_behind_each_other(chapter):
    """What a user feels grows with the place in the queue, and less with the cache."""
    off, radix = compared(chapter).traces.values()
    waits = {run: [one.metrics.ttft_s for one in run.requests] for run in (off, radix)}
    assert all(each == sorted(each) for each in waits.values())
    assert waits[off][-1] > 6 * waits[off][0]
    assert waits[radix][-1] < 4 * waits[radix][0] and waits[radix][-1] < waits[off][-1] / 2


def test_what_the_tree_keeps_is_drawn_as_its_price(chapter):
    figure = strips(compared(chapter).traces, chapter["TTFT"])
    drawn = " ".join(note.text for note in figure.figure.layout.annotations)
    assert "kept for hits" in drawn and "pages copied" in figure.alt


def test_nothing_shared_is_nothing_found(chapter):
    result = compared(chapter, shared=0.0)
    assert ratio(result, "ttft_p50_s") == ratio(result, "flops") == 1.0
    assert result.verdict.outcome == "same"
    assert result.traces["on"].totals.hit_tokens == 0


def test_the_gain_and_the_hit_rate_grow_with_the_shared_part(capsys):
    chapter = run_cells(CHAPTER, "workload", "predict", "share", "kinds")
    gain = [spread.median for spread in chapter["gain"].result.points.values()]
    hits = [spread.median for spread in chapter["hits"].result.points.values()]
    assert gain[0] == 1.0 and gain == sorted(gain, reverse=True) and gain[-1] < 1 / 5
    assert hits[0] == 0.0 and hits == sorted(hits) and hits[-1] > 0.7
    assert chapter["hits"].result.points[0.9].median < 0.9, "the first request finds nothing"
    # Whole pages only, and the larger they are the less: what the tree finds stays the same.
    found = {
        (kind, size): chapter["found_by"](kind, size)
        for kind in ("hash", "radix")
        for size in (16, 64, 256)
    }
    for (kind, size), totals in found.items():
        whole = 1260 // size * size
        assert totals.hit_tokens == 6 * (whole if kind == "hash" else 1260)
        assert totals.copied_blocks == (0 if kind == "hash" else 6)
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
    assert start.verdict.outcome == "same"
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


def test_six_files_leave_only_first_pages_and_the_help_names_the_orders_that_are_offered():
    chapter = run_cells(CHAPTER, "workload", "break")
    playground = chapter["playground"]
    playground.controls["files"].value = 6
    playground.run()
    found = {one.metrics.num_cached_tokens for one in playground.result.traces["radix"].requests}
    assert max(found) < 100 and found != {0}
    order = playground.controls["scheduling.order"].spec
    assert [word.rstrip(":") for word in order.doc.split() if word.endswith(":")] == [
        *order.options
    ]


def test_what_is_said_about_a_wrong_bound_is_true():
    exercise = load_exercise("44_longest_prefix")

    def met(first):
        def rank(seat, limit):
            return first(seat, limit)

        return check(rank, exercise).misconception

    # These do look at seat.overtaken, and a request still starves.
    for late in (0.0, float("inf")):
        told = met(lambda seat, limit, late=late: late if seat.overtaken >= limit else -seat.found)
        assert told.name == "starves" and "does not go first" in told.message
    for limit_off, name in ((-1, "one too few"), (1, "one too many")):
        told = met(
            lambda seat, limit, off=limit_off: (
                float("-inf") if seat.overtaken >= limit + off else -seat.found
            )
        )
        assert told.name == name


def test_sweep_and_playground_compute_the_same_prompts():
    """A browser moves a slider to its nearest step, and 0.9 became 0.9025."""
    chapter = run_cells(CHAPTER, "workload", "break")
    sweep, playground = chapter["sweep"].result, chapter["playground"]
    shared = playground.controls["shared"].input
    steps = (shared.value - shared.min) / shared.step
    assert steps == pytest.approx(round(steps), abs=1e-9), "the start value is no step"
    playground.controls["files"].value = 3
    playground.run()
    assert playground.result.verdict.ratio.median == pytest.approx(sweep.points[3].median)


def test_the_first_request_alone_is_not_the_answer():
    """Seven requests, one of which computes: a seventh. The others compute their questions too."""
    asked = find_quantity("44.computed")
    truth = 1600 / 7000
    assert not truth / asked.within <= 1 / 7 and truth * asked.within < 1 / 3
