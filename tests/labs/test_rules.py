"""Every chapter that has run keeps the rules, and every rule can go red."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from types import SimpleNamespace

import pytest
from labs.rules import RULES
from labs.rules.comparisons import (
    a_moved_control_greys_the_results_out,
    both_strips_are_open,
    factors_are_above_one,
    it_opens_in_the_playground,
    nothing_is_said_of_an_unfinished_run,
    the_figure_draws_the_headline,
    the_flip_is_one_field_and_gives_a_verdict,
)
from labs.rules.provenance import (
    a_modelled_shape_is_named,
    numbers_say_how_they_were_found,
    only_the_switch_is_a_difference,
)
from labs.rules.recaps import recap_answers_have_evidence
from labs.rules.sweeps import a_crossover_is_marked, the_sweep_turns_the_flipped_switch
from labs.running import ChapterRun, broken_rules

from labs import lint
from minserve.bench.compare.workload import Workload
from minserve.bench.workloads.shapes import SHAPES
from minserve.hardware import DEVICES
from minserve.virtual import CostModel
from tests.widgets.panels.tiny_runs import STATIC, tiny
from widgets.figures.strips import strips
from widgets.metrics import METRICS
from widgets.panels import Compare, Predict, Slide, Sweep
from widgets.panels.sweeps.figure import sweep_figure
from widgets.scoring.questions import Prediction, Question, Reason

COST = CostModel(DEVICES["H100 SXM"], "bfloat16", efficiency=0.5, overhead_s=1e-4)
LLAMA = SHAPES["llama-3.1-8b"]
SWITCH = {"scheduling.policy": "continuous"}
ROOMY = STATIC.with_values({"memory.kv_bytes": 1 << 30})


@pytest.mark.parametrize("path", lint.notebooks(), ids=lambda path: path.stem)
def test_a_notebook_keeps_the_rules(path):
    assert broken_rules(path) == {}


# Every rule can go red: a comparison that keeps them all, and the smallest change that breaks one.


@pytest.fixture(scope="module")
def kept(request):
    """A chapter's panels on the virtual clock: one flip, one sweep, one prediction."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINSERVE_HEADLESS", "1")
        made = {"names": ("off", "on"), "virtual": COST, "shape": LLAMA, "clock": "virtual"}
        count = Slide("count", 2, 12, 6)
        flip = Compare(ROOMY, SWITCH, lambda count: tiny(count), headline="steps",
                       workload_controls=[count], **made)  # fmt: skip
        flip.run()
        sweep = Sweep(
            ROOMY, "longest", [2, 4, 6], lambda longest: tiny(6, (2, longest)), switch=SWITCH,
            metric="duration_s", modelled=COST, shape=LLAMA, clock="virtual", threshold=1.05,
        )  # fmt: skip
        sweep.run()
        yield ChapterRun("99_test", {}, ["it took 3 ms (modelled)"], [flip, sweep])


def changed(run, **changes):
    return dataclasses.replace(run, **changes)


OF_PANELS = [rule for rule in RULES if rule is not recap_answers_have_evidence]
"""The evidence of recaps has its own tests, beside the questions."""


@pytest.mark.parametrize("rule", OF_PANELS, ids=lambda rule: rule.__name__)
def test_what_keeps_the_rules_breaks_none(kept, rule):
    assert list(rule(kept)) == []


def test_a_flip_of_two_fields_is_noticed(kept, monkeypatch):
    result = dataclasses.replace(kept.objects[0].result, changed={"a": (1, 2), "b": (1, 2)})
    monkeypatch.setattr(kept.objects[0], "_result", result)
    assert "expected one field" in next(the_flip_is_one_field_and_gives_a_verdict(kept))


def test_two_rounds_on_the_wall_clock_are_noticed(kept, monkeypatch):
    result = dataclasses.replace(kept.objects[0].result, provenance="measured", rounds=2)
    monkeypatch.setattr(kept.objects[0], "_result", result)
    assert "2 rounds" in next(the_flip_is_one_field_and_gives_a_verdict(kept))


def test_a_figure_of_another_quantity_is_noticed(kept, monkeypatch):
    flip = kept.objects[0]
    other = strips(flip.result.traces, METRICS["e2e_p50_s"])
    monkeypatch.setattr(flip.view.strips, "shown", other)
    assert any("is quoted and not drawn" in said for said in the_figure_draws_the_headline(kept))


@pytest.mark.parametrize("text", ["radix is 0.164x (0.159 to 0.17)", "only 0.5 times as many"])
def test_a_factor_below_one_is_noticed(kept, text):
    assert list(factors_are_above_one(changed(kept, outputs=[text])))
    assert not list(factors_are_above_one(changed(kept, outputs=["10.5x faster, 0.5 ms"])))


def test_strips_that_are_folded_away_or_unequally_wide_are_noticed(kept, monkeypatch):
    view = kept.objects[0].view
    with monkeypatch.context() as patch:
        patch.setattr(view.widget, "children", (view.headline, view._rest))
        assert "folded away" in next(both_strips_are_open(kept))
    longer = copy.deepcopy(view.strips.shown.figure)
    longer.update_xaxes(range=[0, 99], row=1, col=1)
    shown = dataclasses.replace(view.strips.shown, figure=longer)
    monkeypatch.setattr(view.strips, "shown", shown)
    assert any("different seconds" in said for said in both_strips_are_open(kept))


def test_a_value_in_a_live_drawing_and_a_sentence_after_a_stop_are_noticed(kept, monkeypatch):
    view = kept.objects[0].view
    monkeypatch.setattr(view, "draw_live", lambda traces: view.draw(kept.objects[0].result))
    monkeypatch.setattr(view, "stopped", lambda: None)
    said = " ".join(nothing_is_said_of_an_unfinished_run(kept))
    assert "quotes values" in said and "says a number" in said and "after a stop" in said


def test_old_results_in_full_colour_are_noticed(kept, monkeypatch):
    flip = kept.objects[0]
    monkeypatch.setattr(flip.outcome, "grey_out", lambda: None)
    assert "in full colour" in next(a_moved_control_greys_the_results_out(kept))


def test_a_modelled_shape_under_another_name_is_noticed(kept, monkeypatch):
    other = dataclasses.replace(LLAMA, name="zoo/base")
    monkeypatch.setattr(kept.objects[0], "shape", other)
    assert len(list(a_modelled_shape_is_named(kept))) == 2


def test_a_field_that_only_follows_is_noticed(kept, monkeypatch):
    flip = kept.objects[0]
    result = dataclasses.replace(flip.result, changed={"scheduling.order": ("a", "b")})
    monkeypatch.setattr(flip, "_result", result)
    assert "scheduling.policy" in next(only_the_switch_is_a_difference(kept))


def test_a_code_of_something_else_is_noticed(kept, monkeypatch):
    flip = kept.objects[0]
    setup, notes = flip._setup()
    other = dataclasses.replace(setup, base_name="another", workload=Workload("listed"))
    monkeypatch.setattr(flip.playground, "_make", lambda: (other, notes))
    said = " ".join(itertools.islice(it_opens_in_the_playground(kept), 1))
    assert "opens with the sides ('another', 'on')" in said


def test_a_number_without_its_origin_is_noticed(kept):
    bare = changed(kept, outputs=["longest stall: 1.45 s"])
    assert "does not say how" in next(numbers_say_how_they_were_found(bare))


def test_a_sweep_of_something_else_is_noticed(kept, monkeypatch):
    monkeypatch.setattr(kept.objects[1], "switch", SWITCH | {"memory.layout": "contiguous"})
    assert "memory.layout" in next(the_sweep_turns_the_flipped_switch(kept))


def test_a_sweep_without_a_crossover_is_noticed(kept, monkeypatch):
    result = dataclasses.replace(kept.objects[1].result, threshold=100.0)
    monkeypatch.setattr(kept.objects[1], "_result", result)
    assert "no sweep reaches" in next(a_crossover_is_marked(kept))


def test_a_prediction_about_counts_alone_is_noticed(kept):
    three = (Reason("a", "yes", True), Reason("b", "no"), Reason("c", "no"))
    asked = Prediction((Question("steps", "?", three), Question("flops", "?", three)), "99.flip")
    run = changed(kept, objects=[*kept.objects, Predict(kept.objects[0], asked)])
    assert "one kind only" in next(the_flip_is_one_field_and_gives_a_verdict(run))


def test_a_value_that_is_drawn_and_not_said_is_noticed(kept, monkeypatch):
    monkeypatch.setattr(kept.objects[0].view, "headline", SimpleNamespace(value="faster"))
    assert any("is drawn and not said" in said for said in the_figure_draws_the_headline(kept))


def test_strips_without_memory_are_noticed(kept, monkeypatch):
    view = kept.objects[0].view
    bare = copy.deepcopy(view.strips.shown.figure)
    bare.layout.annotations = ()
    monkeypatch.setattr(view.strips, "shown", dataclasses.replace(view.strips.shown, figure=bare))
    assert any("draws no memory" in said for said in both_strips_are_open(kept))


def test_results_that_stay_grey_are_noticed(kept, monkeypatch):
    flip = kept.objects[0]
    with monkeypatch.context() as patch:
        patch.setattr(flip.outcome, "restore", lambda: None)
        assert any("stays grey" in said for said in a_moved_control_greys_the_results_out(kept))
    flip.outcome.restore()


def test_a_figure_whose_takeaway_has_no_origin_is_noticed(kept):
    figure = kept.objects[0].view.strips.shown
    bare = dataclasses.replace(figure, takeaway="It stalls for 3 ms.", caption="")
    run = changed(kept, objects=[*kept.objects, bare])
    assert any("a figure does not say" in said for said in numbers_say_how_they_were_found(run))


def test_a_threshold_or_crossover_that_is_not_drawn_is_noticed(kept, monkeypatch):
    drawn = copy.deepcopy(sweep_figure(kept.objects[1].result).figure)
    drawn.layout.shapes = ()
    drawn.data = [trace for trace in drawn.data if trace.name != "crossover"]
    drawn.layout.yaxis.ticktext = ()
    monkeypatch.setattr(
        "labs.rules.sweeps.sweep_figure", lambda result: SimpleNamespace(figure=drawn)
    )
    said = " ".join(a_crossover_is_marked(kept))
    assert "is not drawn" in said and "is not marked" in said and "decimal labels" in said
