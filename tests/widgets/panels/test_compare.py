"""Two real sides, taking turns: numbers with their spread, counts, and what a reader can do."""

from __future__ import annotations

import random
import time

import pytest
import torch

from minserve import ConfigError
from minserve.engine import Engine
from minserve.hardware import DEVICES
from minserve.virtual import CostModel
from tests.widgets.panels.tiny_runs import BASE, STATIC, arriving, tiny
from widgets import theme
from widgets.panels import Agreement, Compare, Metric, Pick, Slide
from widgets.panels.comparison.sides import Sides
from widgets.panels.comparison.view import MORE
from widgets.workers import raise_panel_errors

SWITCH = {"scheduling.policy": "continuous"}
FLAT = Metric("flat", "flat", "lower", lambda run: 1.0, str)
"""A metric that nothing can be drawn of."""


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def test_a_comparison_measures_counts_models_and_keeps_its_invariant(headless):
    panel = Compare(STATIC, SWITCH, tiny(6), rounds=3, headline="steps",
                    virtual=CostModel(DEVICES["H100 SXM"], "float32"))  # fmt: skip
    panel.run()
    result = panel.result
    assert result.sides == ("off", "on")
    assert result.changed == {"scheduling.policy": ("static", "continuous")}
    assert result.agreement.held and "identical" in result.agreement.sentence
    assert result.verdict.outcome == "better" and result.verdict.exact
    steps = result.metrics["steps"]
    assert result.sentence() == (
        f"“on”: {theme.format_ratio(1 / steps.verdict.ratio.median)} fewer steps; engine steps: "
        f"{steps.quoted['on']:.0f} steps with “on”, {steps.quoted['off']:.0f} steps with “off” "
        "(counted)"
    )
    throughput = result.metrics["output_tokens_per_s"]
    assert len(throughput.values["on"]) == len(throughput.verdict.ratio.values) == 3
    assert {"ttft_p50_s", "tpot_p50_s", "peak_kv_bytes", "itl_max_s"} <= set(result.metrics)
    modelled = result.modelled_s(DEVICES["H200"], "float32")
    assert 0 < modelled["on"] < modelled["off"] < 1e-2
    raise_panel_errors()


def test_on_a_busy_machine_what_is_certain_leads_and_no_verdict_follows(headless):
    drawn = random.Random(3)

    def read(run):
        # A model is certain; what is measured says something else in every round.
        modelled = run.header.device == "H100 SXM"
        return float(run.totals.steps) if modelled else drawn.lognormvariate(0, 2)

    noise = Metric("noise", "noise", "lower", read, str, samples=lambda run: [])
    panel = Compare(STATIC, SWITCH, tiny(6), rounds=3, headline=noise,
                    virtual=CostModel(DEVICES["H100 SXM"], "float32"))  # fmt: skip
    panel.run()
    assert not panel.result.verdict.decided
    certain = panel.result.certain
    text = panel.view.headline.value
    lead, _, rest = text.partition("The same on any machine, because it is ")
    assert certain[0].short in lead and "no verdict" not in lead.lower()
    assert "noise of zoo/base on an H100 SXM" in lead
    assert rest.index(certain[1].short) < rest.index("Noise: no verdict")
    assert "your machine is busy. Run again." in rest
    raise_panel_errors()


def test_where_nothing_certain_differs_no_verdict_says_so(headless):
    drawn = random.Random(3)
    noise = Metric("noise", "noise", "lower", lambda run: drawn.lognormvariate(0, 2), str,
                   samples=lambda run: [])  # fmt: skip
    panel = Compare(BASE, {"seed": 1}, tiny(2), rounds=3, headline=noise)
    panel.run()
    assert not panel.result.certain and not panel.result.verdict.decided
    text = panel.view.headline.value
    assert "No verdict" in text and "What the engine counts is equal on both sides." in text


def test_facts_are_the_same_in_every_run_and_hold_no_wall_clock(headless):
    def facts():
        panel = Compare(STATIC, SWITCH, tiny(6), rounds=3,
                        virtual=CostModel(DEVICES["H100 SXM"], "float32"))  # fmt: skip
        panel.run()
        return panel.facts()

    first = facts()
    assert first == facts()
    assert first["invariant held"] is True
    assert first["on: tokens out"] == 24
    on, off = (f"{name}, zoo/base on H100 SXM" for name in ("on", "off"))
    assert first[f"{on}: steps"] < first[f"{off}: steps"]
    assert first[f"{on}: virtual seconds"] < first[f"{off}: virtual seconds"]


def test_facts_of_requests_that_arrive_leave_out_what_depends_on_the_clock(headless):
    panel = Compare(BASE, {"memory.block_size": 8}, arriving(500.0), rounds=3)
    panel.run()
    facts = panel.facts()
    assert facts["on: tokens out"] == 16
    assert not any("steps" in name for name in facts)


def test_off_against_off_has_no_difference_in_what_is_counted(headless):
    panel = Compare(BASE, {}, tiny(), rounds=3, headline="bytes")
    panel.run()
    assert panel.result.verdict.outcome == "same"
    assert panel.result.changed == {}
    assert panel.result.sentence().startswith("The same; memory traffic: ")
    for name in ("steps", "flops", "peak_kv_bytes"):
        assert panel.result.metrics[name].verdict.outcome == "same"


def test_a_broken_invariant_is_shown_and_a_chapter_may_state_its_own(headless):
    worse = Agreement(False, "0.3 bits per byte worse")
    panel = Compare(BASE, {"seed": 1}, tiny(), rounds=3, invariant=lambda rounds: worse)
    panel.run()
    assert panel.result.agreement.held is False
    assert "✗" in panel.view.agreement.value and "0.3 bits" in panel.view.agreement.value
    assert panel.facts()["invariant held"] is False


def test_live_the_reader_sees_figures_first_and_quoted_numbers_last():
    panel = Compare(STATIC, SWITCH, tiny(), rounds=3)
    drawn = []
    draw_live = panel.view.draw_live
    panel.view.draw_live = lambda traces: drawn.append(sorted(traces)) or draw_live(traces)
    panel.run_button.click()
    assert panel.wait(60)
    raise_panel_errors()
    # The quiet rounds come after the live one and draw nothing.
    assert drawn[0] == ["off"] and drawn[-1] == ["off", "on"]
    strips = panel.view.strips.shown
    assert strips is not None
    assert any("<b>" in note.text for note in strips.figure.layout.annotations)
    assert panel.view.widget in panel.results.children
    assert "rounds" in panel.view.headline.value
    assert "Done." in panel.status.value
    titles = panel.view.more.titles
    assert "On a modelled GPU" in titles and panel.view.more.selected_index is None
    panel.view.gpu.value = "T4"
    assert "T4" in panel.view.modelled.value
    hidden = panel.view.figures["latency"]
    assert hidden.shown is None
    panel.view.more.selected_index = list(MORE).index("latency")
    assert hidden.shown is not None and "TTFT" in hidden.shown.takeaway
    panel.run()
    assert panel.wait(60)
    raise_panel_errors()


def test_sides_take_turns_and_are_never_at_work_together(monkeypatch):
    at_work, order = [], []
    run = Sides.run

    def watched(self, name, *args, **options):
        assert not at_work
        at_work.append(name)
        order.append(name)
        try:
            return run(self, name, *args, **options)
        finally:
            at_work.remove(name)

    monkeypatch.setattr(Sides, "run", watched)
    panels = [Compare(BASE, {"memory.block_size": 8}, tiny(2), rounds=3) for _ in range(2)]
    monkeypatch.setenv("MINSERVE_HEADLESS", "0")
    for panel in panels:
        panel.mask(None, "hidden")
        panel.run()
    for panel in panels:
        assert panel.wait(60)
    raise_panel_errors()
    # Warm-ups or a live round first; a busy machine may add rounds, which go on turning.
    turns = ["off", "on", "off", "on", "on", "off", "off", "on", "on", "off", "off", "on"]
    assert order[:8] == turns[:8]


def test_a_second_panel_waits_and_says_for_whom():
    first = Compare(BASE, {"seed": 1}, arriving(0.5), rounds=3, title="the slow one")
    second = Compare(BASE, {"seed": 1}, tiny(2), rounds=3)
    first.run()
    wait_for(lambda: first.worker.state == "running")
    second.run()
    wait_for(lambda: "the slow one" in second.status.value)
    assert second.worker.state == "waiting"
    assert second.run_button.disabled and not second.stop_button.disabled
    second.stop_button.click()
    assert second.wait(5)
    first.stop()
    assert first.wait(5)


def test_stop_is_heard_within_half_a_second_and_nothing_is_quoted():
    panel = Compare(BASE, {"seed": 1}, arriving(0.2), rounds=3)
    panel.run_button.click()
    wait_for(lambda: "Live" in panel.status.value)
    start = time.monotonic()
    panel.stop_button.click()
    assert panel.wait(5)
    assert time.monotonic() - start < 0.5
    assert "Stopped" in panel.status.value
    assert not panel.run_button.disabled and panel.stop_button.disabled
    assert panel.last is None
    with pytest.raises(RuntimeError, match="no result yet"):
        _ = panel.result
    raise_panel_errors()


@pytest.mark.parametrize("words", ["Live: “on”", "Measuring undrawn, round 2"])
def test_after_a_stop_no_engine_step_begins_and_nothing_is_drawn(monkeypatch, words):
    panel = Compare(BASE, {"seed": 1}, tiny(2, (12,)), rounds=3, names=("off", "on"))
    step, pressed, late = Engine.step, [], []

    def watched(engine):
        if pressed:
            late.append("a step")
        elif words in panel.status.value:
            # In the middle of a step: as late as a press can come and still be in time.
            pressed.append(True)
            panel.stop_button.click()
            assert panel.stop_button.disabled and "Stopping" in panel.status.value
            monkeypatch.setattr(panel.view, "draw_live", lambda traces: late.append("a drawing"))
            monkeypatch.setattr(panel.view, "draw", lambda result: late.append("a result"))
        return step(engine)

    monkeypatch.setattr(Engine, "step", watched)
    panel.run()
    assert panel.wait(60)
    raise_panel_errors()
    assert pressed and not late
    assert panel.worker.state == "stopped" and "Stopped" in panel.status.value
    assert not panel.run_button.disabled and panel.stop_button.disabled


def test_the_arrival_rate_reaches_the_running_loop():
    panel = Compare(BASE, {"seed": 1}, arriving(0.05, 3), rate=(0.05, 1000.0), rounds=3)
    assert panel.rate is not None
    panel.run()
    wait_for(lambda: "Live" in panel.status.value)
    # At the first rate the second request would be many seconds away.
    panel.rate.input.value = 1000.0
    assert panel.wait(30)
    result = panel.result
    assert result.rate_per_s == pytest.approx(1000.0)
    assert result.agreement.held


@pytest.mark.parametrize(
    ("clock", "words"), [("wall", "while the engine runs"), ("virtual", "next run")]
)
def test_the_slider_of_arrivals_says_when_it_takes_effect(clock, words):
    panel = Compare(BASE, {"seed": 1}, arriving(0.05, 3), rate=(0.05, 9.0), rounds=3, clock=clock)
    assert panel.rate is not None and words in panel.rate.widget.children[-1].value


def test_a_config_error_becomes_a_sentence_and_goes_when_it_is_put_right():
    panel = Compare(
        BASE.with_values({"scheduling.max_num_batched_tokens": 64}),
        {"scheduling.enable_chunked_prefill": False},
        tiny(2),
        controls=[Slide("scheduling.max_num_batched_tokens", 8, 128)],
        rounds=3,
    )
    assert panel.problem.value == ""
    panel.controls["scheduling.max_num_batched_tokens"].input.value = 16
    assert "raise the budget" in panel.problem.value
    panel.run_button.click()
    assert "raise the budget" in panel.problem.value
    assert panel.worker.state == "idle"
    with pytest.raises(ConfigError):
        panel.run()
    panel.controls["scheduling.max_num_batched_tokens"].input.value = 64
    assert panel.problem.value == ""
    raise_panel_errors()


def test_an_error_inside_the_worker_is_shown_and_raised_again():
    def read(trace):
        raise ArithmeticError("the meter broke")

    broken = Metric("broken", "broken", "lower", read, str, samples=lambda run: [])
    panel = Compare(BASE, {"seed": 1}, tiny(2), rounds=3, headline=broken)
    panel.mask(None, "hidden")
    panel.run_button.click()
    assert panel.wait(30)
    assert "the meter broke" in panel.problem.value and "Details" in panel.problem.value
    with pytest.raises(ArithmeticError):
        _ = panel.result
    with pytest.raises(ArithmeticError):
        raise_panel_errors()
    assert not panel.run_button.disabled


def test_what_is_drawn_live_is_not_greyed_out_with_the_result_before(monkeypatch):
    panel = Compare(BASE, SWITCH, lambda spread: tiny(spread),
                    workload_controls=[Slide("spread", 1, 8, 2)], rounds=3)  # fmt: skip
    panel.run()
    assert panel.wait(60)
    panel.controls["spread"].value = 3
    assert panel.outcome.stale
    drawn, draw_live = [], panel.view.draw_live

    def watched(traces):
        drawn.append(panel.outcome.stale)
        draw_live(traces)

    monkeypatch.setattr(panel.view, "draw_live", watched)
    panel.run()
    assert panel.wait(60)
    raise_panel_errors()
    assert drawn and not any(drawn)


def test_every_control_reaches_the_side_it_belongs_to(headless):
    seen = []

    def workload(spread, kind, shuffled):
        seen.append((spread, kind, shuffled))
        return tiny(spread)

    panel = Compare(
        STATIC,
        SWITCH,
        workload,
        controls=["scheduling.policy", "memory.block_size", "memory.check_integrity",
                  "memory.watermark", Slide("memory.kv_bytes", 1 << 20, 1 << 22)],
        workload_controls=[Slide("spread", 1, 8, 2), Pick("kind", ("a", "b")),
                           Slide("shuffled", 0.1, 0.9, 0.5)],
        rounds=3,
    )  # fmt: skip
    names = list(panel.controls)
    for name, value in zip(names, ["static", 8, True, 0.02, 1 << 21, 3, "b", 0.25], strict=True):
        assert panel.controls[name].input.description
        panel.controls[name].value = value
    configs = panel.configs()
    # The switch's field is the second side's; everything else is shared.
    assert configs["off"].scheduling.policy == configs["on"].scheduling.policy == "static"
    for config in configs.values():
        assert (config.memory.block_size, config.memory.check_integrity) == (8, True)
        assert (config.memory.watermark, config.memory.kv_bytes) == (0.02, 1 << 21)
    panel.run()
    assert "changed" not in panel.status.value
    panel.controls["spread"].value = 4
    assert panel.outcome.stale
    panel.controls["spread"].value = 3
    assert not panel.outcome.stale, "these are the settings that were run"
    assert seen[-1] == (3, "b", 0.25)
    assert panel.result.counts["on"].requests == 3
    assert panel.result.changed == {}


def test_two_configurations_may_be_given_whole(headless):
    pair = (BASE.with_values({"memory.block_size": 4}), BASE.with_values({"memory.block_size": 32}))
    panel = Compare(BASE, pair, tiny(2), controls=["scheduling.policy"], rounds=3,
                    names=("small", "large"), headline="peak_kv_bytes")  # fmt: skip
    panel.run()
    assert panel.result.changed == {"memory.block_size": (4, 32)}
    assert panel.result.sentence().startswith("“large”: 4x more memory; KV memory allocated")


def test_on_the_virtual_clock_time_is_modelled_and_everything_is_a_fact(headless, monkeypatch):
    monkeypatch.setenv("MINSERVE_CLOCK", "virtual")
    panel = Compare(STATIC, SWITCH, arriving(2000.0, 8))
    panel.run()
    result = panel.result
    assert (result.provenance, result.rounds, result.agreement.held) == ("modelled", 1, None)
    assert result.verdict.exact
    assert result.traces["on"].header.provenance == "modelled"
    assert "virtual seconds" in " ".join(panel.facts())
    assert "modelled" in " ".join(child.value for child in panel.settings.children
                                  if hasattr(child, "value"))  # fmt: skip


def test_masked_results_are_not_in_the_page_and_live_figures_are_not_drawn():
    panel = Compare(STATIC, SWITCH, tiny(2), rounds=3)
    panel.mask("me", "later")
    panel.view.draw_live = lambda traces: pytest.fail("drawn behind a mask")
    panel.run()
    assert panel.wait(30)
    raise_panel_errors()
    (veil,) = panel._slot.children
    assert "later" in veil.value
    panel.unmask("me")
    assert panel._slot.children == (panel.outcome.widget,)


def test_a_chapters_own_figures_and_facts_follow_the_mask(capsys):
    from widgets.figures import throughput

    panel = Compare(STATIC, SWITCH, tiny(2), rounds=3)
    panel.mask("me", "later")
    panel.also(lambda result: throughput(result.traces))
    panel.show_facts()
    texts = [place.children[0].value for _, place in panel._places]
    assert all("later" in text for text in texts)
    panel.run()
    assert panel.wait(30)
    assert "later" in panel._places[1][1].children[0].value
    panel.unmask("me")
    assert "tokens out" in panel._places[1][1].children[0].value
    panel.also(lambda result: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        raise_panel_errors()


def test_headless_facts_are_printed_one_a_line(headless, capsys):
    panel = Compare(STATIC, SWITCH, tiny(2), rounds=3)
    panel.run()
    panel.show_facts()
    panel.also(lambda result: "a word")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "invariant held: True" and lines[-1] == "a word"
    assert panel._repr_mimebundle_() == {"text/plain": repr(panel)}


def test_a_side_has_its_own_number_of_threads_and_the_process_gets_its_own_back(
    headless, monkeypatch
):
    before, asked = torch.get_num_threads(), []
    # Really running with more threads than cores would take half a minute here.
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    panel = Compare(BASE, {"kernels.num_threads": before + 1}, tiny(2), rounds=3)
    panel.run()
    raise_panel_errors()
    # Loading, the warm-up and each round of the second side.
    assert asked.count(before + 1) == 2 + panel.result.rounds
    assert asked[-1] == before


@pytest.mark.parametrize(
    "options",
    [
        {"rounds": 0},
        {"names": ("a", "a")},
        {"rounds": 2},
        {"headline": Metric("flat", "flat", "lower", lambda run: 1.0, str)},
        {"headline": "speed"},
    ],
)
def test_what_cannot_be_shown_is_refused_when_the_panel_is_made(options):
    with pytest.raises(ValueError):
        Compare(BASE, {"seed": 1}, tiny(2), **options)
