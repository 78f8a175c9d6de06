"""Chapter 43a teaches what is so: the declared effect, no effect from nothing, and the reversal."""

from __future__ import annotations

import json

import pytest
from labs.chapters import LABS, run_cells

from labs import fuzz
from minserve.bench.runs.memory import POOL_TOKENS, longest_of, rung_configs
from minserve.bench.runs.memory_sweep import pays_from
from minserve.bench.workloads.heavy_tail import COMMITTED, heavy_tail
from minserve.bench.workloads.traces import read_mooncake, to_traffic
from minserve.trace import MemoryShares
from widgets.panels import Compare, Metric
from widgets.panels.exercises.exercise import load_exercise
from widgets.workers import raise_panel_errors

CHAPTER = "43a_paging_and_sharing"
SWITCH = "memory.layout"
USEFUL = Metric(
    "useful", "useful", "higher", lambda t: MemoryShares.of(t.steps).useful, str, counted=True
)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MINSERVE_HEADLESS", "1")
    monkeypatch.setenv("MINSERVE_PROGRESS", str(tmp_path / "progress.json"))


@pytest.fixture(scope="module")
def chapter():
    return run_cells(CHAPTER, "workload")


def compared(chapter, base, sides, workload):
    """Both sides for the 8B on the modelled GPU, in the memory of as many tokens as here."""
    panel = Compare(
        base,
        sides,
        workload,
        metrics=(USEFUL,),
        virtual=chapter["A100"],
        shape=chapter["LLAMA"],
        clock="virtual",
    )
    panel.run()
    return panel.result


def big(chapter, config, tokens):
    return config.with_values(
        {"memory.kv_bytes": tokens * chapter["LLAMA"].spec().kv_bytes_per_token(2)}
    )


def ratio(result, metric):
    return result.metrics[metric].verdict.ratio.median


def flipped(chapter, layouts=("contiguous", "paged"), **workload):
    base = big(chapter, chapter["RESERVED"], chapter["PAGES"] * 8)
    sides = tuple(base.with_values({SWITCH: each}) for each in layouts)
    return compared(chapter, base, sides, chapter["workload"](**workload))


def test_the_headline_effect_passes_its_threshold_in_counts_and_in_virtual_time(chapter):
    result = flipped(chapter)
    assert ratio(result, "steps") < 0.65
    assert ratio(result, "output_tokens_per_s") > 1.5
    assert ratio(result, "useful") > 2
    before, after = (MemoryShares.of(trace.steps) for trace in result.traces.values())
    assert before.useful < 0.4 and after.useful > 0.85
    assert before.external and not after.external


@pytest.mark.parametrize("layout", ["contiguous", "paged"])
def test_a_layout_against_itself_shows_no_effect(chapter, layout):
    result = flipped(chapter, (layout, layout))
    assert {name: ratio(result, name) for name in result.metrics} == dict.fromkeys(
        result.metrics, 1.0
    )


@pytest.mark.slow
def test_the_ladder_climbs_on_the_committed_trace(chapter):
    trace = to_traffic(read_mooncake(COMMITTED), vocab_size=4096)
    kv_bytes = POOL_TOKENS * chapter["LLAMA"].spec().kv_bytes_per_token(2)
    rungs = rung_configs(kv_bytes, longest_of(trace))
    rectangles, packed, longest, power, oracle, paged = rungs.values()
    idle = compared(chapter, rectangles, (rectangles, packed), trace)
    assert ratio(idle, "steps") == 1
    # A GPU that reads the weights anyway hardly notices the rows of those who have ended.
    assert 1 < ratio(idle, "output_tokens_per_s") < 1.1
    whole = compared(chapter, packed, (packed, paged), trace)
    assert ratio(whole, "output_tokens_per_s") > 3
    for worse, better in ((packed, power), (longest, power), (power, oracle), (oracle, paged)):
        assert ratio(compared(chapter, worse, (worse, better), trace), "steps") < 1
    known = compared(chapter, oracle, (oracle, paged), trace)
    assert ratio(known, "output_tokens_per_s") > 1.5, "known lengths do not save reserving"


def test_the_committed_trace_is_what_its_script_makes():
    assert tuple(read_mooncake(COMMITTED)) == heavy_tail()


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_stalls_come_from_a_full_pool_whether_answers_are_equal_or_not(chapter, spread):
    few, many = (flipped(chapter, spread=spread, count=count, output_mean=64) for count in (4, 128))
    contiguous, paged = ([r.counts[side].preemptions for r in (few, many)] for side in few.counts)
    assert contiguous == [0, 0] and paged[0] == 0 < paged[1]
    assert ratio(many, "itl_max_s") > 2


@pytest.mark.slow
def test_break_it_loses_the_gain_inside_its_range_and_every_slider_moves_the_headline():
    chapter = run_cells(CHAPTER, "workload", "break")
    sweep, crowd, playground = (chapter[name] for name in ("sweep", "crowd", "playground"))
    gains = sweep.result.gains
    assert gains[0.0] < 1.2 and gains[0.5] > 1.4
    assert 0.02 < sweep.result.crossover < 0.03
    choices = chapter["guess"].asked.choices
    assert min(choices, key=lambda choice: abs(choice - sweep.result.crossover)) == 0.02
    # Where every reservation fits, there is nothing to gain.
    assert crowd.result.gains[8] == crowd.result.gains[32] == 1
    assert 64 < crowd.result.crossover < 128
    playground.run()
    start = playground.result
    assert start.verdict.outcome == "worse" and start.verdict.ratio.median > 2
    assert start.counts["paged"].preemptions > 100 and not start.counts["contiguous"].preemptions
    # What it buys at the same time, though answers are equal: they are long.
    assert ratio(start, "output_tokens_per_s") > 1.2
    for name, value in {"spread": 2.0, "output_mean": 16}.items():
        control = playground.controls[name]
        before, control.value = control.value, value
        playground.run()
        assert abs(playground.result.verdict.ratio.median / start.verdict.ratio.median - 1) > 0.05
        control.value = before
    raise_panel_errors()


def test_the_recorded_sweep_shows_where_pages_begin_to_pay():
    recorded = json.loads((LABS / "recorded" / "43a_sweep.json").read_text())
    assert recorded["same_tokens"] and recorded["machine"]["cpu_model"] and recorded["date"]
    packed, rectangles = (
        {point["spread"]: point[key]["median"] for point in recorded["sweep"]}
        for key in ("times_packed_static", "times_rectangles")
    )
    below, above = pays_from(packed)
    assert 0 < below < above < 1
    # What the chapter says of rectangles.
    assert pays_from(rectangles) is None and rectangles[0.0] > 1.2
    assert all(rectangles[spread] > gain for spread, gain in packed.items())


@pytest.mark.parametrize(
    ("mistake", "copied"),
    [
        ("copies backwards", "pages.copy(mine, shared); pages.release(shared)"),
        ("releases twice", "pages.copy(shared, mine); [pages.release(shared) for _ in '12']"),
    ],
)
def test_a_wrong_copy_that_is_released_is_not_called_a_leak(mistake, copied):
    exercise = load_exercise("43a_block_table")
    body = f"""place, offset = divmod(sequence.length, pages.size)
if offset == 0:
    sequence.table.append(pages.allocate())
elif pages.owners(sequence.table[place]) > 1:
    shared, mine = sequence.table[place], pages.allocate()
    {copied}
    sequence.table[place] = mine
return sequence.table[place] * pages.size + offset"""
    report = fuzz.quickly(fuzz.function(exercise, body), exercise)
    assert report.status == "failed" and report.misconception is None, mistake
