"""Four sides in turn on both clocks, a cut that quotes nothing, and the command line's numbers."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from dataclasses import replace

import pytest

from minserve.__main__ import main
from minserve.bench.compare.setup import Variant
from minserve.bench.compare.workload import KINDS, Workload
from tests.widgets.playground.small import BASE, FEW, FOUR, HERE, STATIC
from widgets.metrics import METRICS, Metric
from widgets.panels.base import Refusal
from widgets.playground import Playground
from widgets.playground.result import LIMIT_S
from widgets.playground.running import Runs
from widgets.playground.view import _once
from widgets.workers import Job, Stopped, Worker, raise_panel_errors


def playground(setup, **options):
    made = Playground(**options)
    assert made.state.change(lambda old: setup)
    return made


def words(html):
    return re.sub(r"<[^>]*>", " ", html)


def job():
    return Job(Worker("test"))


class Ticking:
    """A clock that goes on by `tick` whenever it is read, from the `after`th side on."""

    def __init__(self, tick):
        self.tick, self.time = tick, 0.0

    def __call__(self):
        self.time += self.tick
        return self.time


def test_a_base_and_three_variants_are_four_sides_and_three_verdicts(headless):
    panel = playground(FOUR)
    panel.run()
    result = panel.result
    assert list(result.runs) == ["base", "static", "one by one", "radix"]
    assert list(result.pairs) == ["static", "one by one", "radix"]
    assert result.pairs["one by one"].metrics["steps"].verdict.outcome == "worse"
    figure = panel.view.strips.shown.figure
    assert {trace.name for trace in figure.data} >= set(result.runs)
    text = words(panel.view.verdicts.value)
    assert "one by one  (scheduling.max_num_seqs = 1): " in text and text.count("(modelled)") == 3
    assert words(panel.view.counted.value).count("one by one") == 1
    raise_panel_errors()


def test_on_this_machine_three_rounds_give_counts_tokens_and_a_verdict(headless):
    panel = playground(HERE)
    panel.run()
    result = panel.result
    assert {len(runs) for runs in result.runs.values()} == {3}
    pair = result.pairs["static"]
    assert pair.agreement.held and pair.rounds == 3
    assert pair.metrics["steps"].provenance == "counted"
    assert pair.metrics["ttft_p50_s"].provenance == "measured"
    assert "tokens identical" in words(panel.view.verdicts.value)
    assert panel.facts() == panel.result.facts() != {}
    raise_panel_errors()


@pytest.mark.parametrize("clock", ["wall", "virtual"])
def test_a_side_that_takes_too_long_is_cut_and_nothing_is_quoted_of_it(headless, clock):
    # Read twice at a side's beginning and once a step: six steps fit into the twenty seconds.
    setup = replace(FOUR, clock=clock, variants=(STATIC,))
    result = Runs(setup, job(), now=Ticking(3.0)).all()
    assert set(result.cut) == {"base", "static"} and not result.runs and not result.pairs
    said = result.cut_sentences()
    assert len(said) == 2 and "“base” was cut after 20 seconds" in said[0]
    steps = result.cut["base"].totals.steps
    assert 2 <= steps <= 8 and f"in an unfinished run: {steps} steps" in said[0]
    assert result.facts() == {}


def test_one_side_that_is_cut_leaves_the_others_their_verdict(headless):
    clock = Ticking(0.0)
    runs = Runs(FOUR, job(), now=clock)
    whole = runs.sides.run

    def slow(name, *given, **options):
        clock.tick = 30.0 if name == "one by one" else 0.0
        return whole(name, *given, **options)

    runs.sides.run = slow
    result = runs.all()
    assert set(result.cut) == {"one by one"} and list(result.pairs) == ["static", "radix"]
    panel = playground(FOUR)
    panel.view.draw(result)
    text = words(panel.view.verdicts.value)
    assert "“one by one” was cut after 20 seconds" in text
    assert "one by one  (" not in text and "static  (scheduling.policy = static)" in text
    assert "one by one" not in words(panel.view.counted.value)


def test_a_cut_base_leaves_nothing_to_compare(headless):
    clock = Ticking(0.0)
    runs = Runs(FOUR, job(), now=clock)
    whole = runs.sides.run

    def slow(name, *given, **options):
        clock.tick = 30.0 if name == "base" else 0.0
        return whole(name, *given, **options)

    runs.sides.run = slow
    result = runs.all()
    assert set(result.cut) == {"base"} and len(result.runs) == 3 and not result.pairs
    panel = playground(FOUR)
    panel.view.draw(result)
    assert "nothing to compare" in words(panel.view.numbers.value)


def test_a_side_that_was_cut_live_is_not_measured(headless, monkeypatch):
    monkeypatch.setattr("widgets.playground.running.headless", lambda: False)
    clock = Ticking(0.0)
    runs = Runs(HERE, job(), now=clock)
    whole, asked = runs.sides.run, []

    def slow(name, traffic, *given, **options):
        if options.get("watch"):  # Warming up is not part of the limit.
            asked.append(name)
            clock.tick = 30.0 if name == "static" else 0.0
        return whole(name, traffic, *given, **options)

    runs.sides.run = slow
    result = runs.all()
    assert asked == ["base", "static", "base", "base", "base"]
    assert set(result.cut) == {"static"} and len(result.runs["base"]) == 3


def test_the_limit_is_twenty_seconds_and_readers_are_told_so(headless):
    assert LIMIT_S == 20.0 == Playground().limit_s


def test_a_stop_by_the_reader_is_no_cut(headless):
    stopping = job()
    stopping._stop.set()
    with pytest.raises(Stopped):
        Runs(FOUR, stopping, now=Ticking(30.0)).all()


def test_drawn_live_no_number_is_said(headless):
    panel = playground(FOUR)
    panel.run()
    panel.view.draw_live(panel.setup, panel.result.traces)
    assert not re.search(r"\d", words(panel.view.verdicts.value))
    assert panel.view.counted.value == ""
    notes = panel.view.strips.shown.figure.layout.annotations
    assert not any("<b>" in (note.text or "") for note in notes)
    panel.view.stopped()
    assert panel.view.verdicts.value == ""


NAMES = {"duration_s": "duration_s", "ttft_p50_s": "median_ttft_ms", "ttft_p99_s": "p99_ttft_ms",
         "tpot_p50_s": "median_tpot_ms", "itl_p99_s": "p99_itl_ms", "e2e_mean_s": "mean_e2el_ms",
         "steps": "steps", "flops": "flops", "bytes": "bytes",
         "peak_kv_bytes": "peak_kv_bytes_allocated",
         "peak_kv_bytes_used": "peak_kv_bytes_used"}  # fmt: skip
OWN = {"prompts": ("def f(x):", "def f(y):", "it's $HOME")}
ROWS = ((0.0, 30, 4, 0, -1, 0), (0.5, 26, 4, 0, 0, 20), (0.1, 9, 8, 0, -1, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_has_the_playgrounds_numbers(headless, tmp_path, kind):
    own = {"prompts": OWN, "listed": {"rows": ROWS}}.get(kind, {})
    given = {p.name for p in KINDS[kind].parameters}
    values = {"count": 12, "rate": 200.0, "prompt": 20, "output": 8, "prefix": 40}
    values = {name: value for name, value in values.items() if name in given}
    setup = replace(FOUR, base={"memory.kv_bytes": 4 << 20, "scheduling.max_num_seqs": 4},
                    workload=Workload(kind, values, **own))  # fmt: skip
    panel = playground(setup)
    panel.run()
    command = shlex.split(panel.command_line)
    out = tmp_path / "result.json"
    assert command[0] == "minserve"
    assert main([*command[1:], "--json", str(out), "--no-progress"]) == 0
    report = json.loads(out.read_text())
    assert list(report["sides"]) == list(panel.result.runs)
    for name, (run,) in panel.result.runs.items():
        for metric, key in NAMES.items():
            value = METRICS[metric].read(run.trace)
            theirs = report["sides"][name][key]
            assert theirs / (1e3 if key.endswith("_ms") else 1) == pytest.approx(value, rel=1e-12)
    assert report["code"] == panel.code or panel.setup.headline != "ttft_p50_s"


def test_prompts_are_written_on_this_machine_and_counted_on_the_virtual_clock(headless):
    setup = replace(HERE, workload=Workload("prompts", {"output": 4}, **OWN))
    panel = playground(setup)
    panel.run()
    texts = panel.result.texts
    assert len(texts["base"]) == 3 and all(texts["base"]) and texts["base"] == texts["static"]
    assert "def f(y):" in words(panel.view.texts.value)
    panel.state.edit(clock="virtual")
    assert "count only as lengths and shared prefixes" in words(panel.workload.doc.value)
    panel.run()
    assert panel.result.texts == {}
    lengths = [r.metrics.num_prompt_tokens for r in panel.result.runs["base"][0].trace.requests]
    assert sorted(lengths) == sorted(len(r.prompt_token_ids) for r in setup.traffic().requests)


def test_prompts_of_which_all_begin_alike_hit_the_prefix_cache_on_the_virtual_clock(headless):
    lines = tuple("def fibonacci(number_of_the_element):  # version " + x for x in "abcdef")
    setup = replace(FOUR, base=BASE | {"scheduling.max_num_seqs": 1},
                    workload=Workload("prompts", {"output": 4}, lines))  # fmt: skip
    panel = playground(setup)
    panel.run()
    hits = {name: each.totals.hit_tokens for name, each in panel.result.traces.items()}
    assert hits["radix"] > 0 == hits["base"]


def test_a_headline_that_the_runs_do_not_have_is_a_sentence(headless):
    once = Workload("independent", {"count": 2, "output": 1, "lengths": "fixed", "rate": 0.0})
    panel = playground(replace(FOUR, workload=once, headline="tpot_p50_s"))
    panel.run()
    with pytest.raises(Refusal, match="say nothing about time per output token"):
        _ = panel.result
    assert "The run failed" not in panel.problem.value
    assert "choose another quantity" in panel.problem.value
    panel.worker.error = None


def test_a_workload_without_requests_is_refused_before_it_runs(headless):
    panel = playground(replace(FOUR, workload=Workload("prompts")))
    with pytest.raises(Refusal, match="write one prompt per line"):
        panel.run()
    panel.pressed_run()
    assert "write one prompt per line" in panel.problem.value


def test_headless_a_new_playground_is_on_the_virtual_clock_and_otherwise_here(
    headless, monkeypatch
):
    assert Playground().setup.clock == "virtual"
    monkeypatch.setenv("MINSERVE_HEADLESS", "0")
    assert Playground().setup.clock == "wall"
    monkeypatch.setenv("MINSERVE_CLOCK", "virtual")
    assert Playground().setup.clock == "virtual"


def test_the_same_workload_is_compared_without_a_variant_too(headless):
    panel = playground(replace(FOUR, variants=(), workload=FEW))
    panel.run()
    assert "no variant" in words(panel.view.verdicts.value) and panel.result.counts


def noisy(monkeypatch):
    """A headline that says something else in every round on this machine, and is certain when
    modelled."""
    # Read in three rounds of the base, then of the variant: nine times more, less, more.
    values = itertools.cycle([1.0, 9.0, 1.0, 9.0, 1.0, 9.0])

    def read(run):
        modelled = run.header.provenance == "modelled"
        return float(run.totals.steps) if modelled else next(values)

    noise = Metric("ttft_p50_s", "noise", "lower", read, str, samples=lambda run: [])
    monkeypatch.setitem(METRICS, "ttft_p50_s", noise)


def test_on_a_busy_machine_what_is_certain_leads_and_run_again_is_said(headless, monkeypatch):
    noisy(monkeypatch)
    panel = playground(replace(HERE, headline="ttft_p50_s"))
    panel.run()
    pair = panel.result.pairs["static"]
    assert not pair.verdict.decided and set(pair.virtual) == {"base", "static"}
    text = words(panel.view.verdicts.value)
    lead, _, rest = text.partition("The same on any machine, because it is ")
    assert "noise of zoo/base on an H100 SXM" in lead and "No verdict" not in lead
    assert "Noise: no verdict" in rest and "your machine is busy. Run again." in rest
    raise_panel_errors()


def test_three_variants_without_a_verdict_say_why_once(headless, monkeypatch):
    noisy(monkeypatch)
    names = ("one", "two", "three")
    same = tuple(Variant(name, {"seed": place}) for place, name in enumerate(names, start=1))
    panel = playground(replace(HERE, variants=same, headline="ttft_p50_s"))
    panel.run()
    html = panel.view.verdicts.value
    assert [pair.verdict.decided for pair in panel.result.pairs.values()] == [False] * 3
    text = words(html)
    assert text.count("Run again.") == 1 and text.count("tokens identical") == 1
    assert all(f"{name}  (seed = {place})" in text for place, name in enumerate(names, start=1))
    assert text.count("no verdict") == 3 and "28px" not in html, "the figure follows soon"
    raise_panel_errors()


def test_what_is_said_of_some_variants_names_them(headless):
    def once(*said):
        return words("".join(_once(said)))

    assert once(("a", "x", "good"), ("a", "y", "good")).split() == ["✓", "a"]
    mixed = once(("a", "x", "good"), ("b", "y", "bad"), ("a", "z", "good"))
    assert "“x”, “z”: a" in mixed and "“y”: b" in mixed
    some = once(("", "x", "info"), ("why", "y", "info"))
    assert some.strip() == "“y”: why", "one variant of two has a verdict"


def test_what_is_drawn_live_has_its_colours(headless):
    panel = playground(FOUR)
    panel.run()
    panel.state.set("static", "memory.prefix_cache", "hash")
    assert panel.outcome.stale
    panel._ran_with = {"setup": panel.setup}
    panel._draw(panel.setup, {})
    assert not panel.outcome.stale, "it is a run of the settings as they are"


def test_what_cannot_be_modelled_leaves_no_verdict(headless, monkeypatch):
    noisy(monkeypatch)
    base = HERE.base | {"scheduling.async_scheduling": True}
    panel = playground(replace(HERE, base=base, headline="ttft_p50_s"))
    panel.run()
    assert panel.result.pairs["static"].virtual == {}
    assert "Run again." in words(panel.view.verdicts.value)
    raise_panel_errors()


def test_one_pair_can_be_chosen_for_the_strips(headless):
    panel = playground(FOUR)
    panel.run()
    everything, one, _, _ = panel.view.shown.options
    panel.view.shown.value = one
    names = {trace.name for trace in panel.view.strips.shown.figure.data}
    assert {"base", "static"} <= names and "radix" not in names
    panel.view.shown.value = everything
    assert "radix" in {trace.name for trace in panel.view.strips.shown.figure.data}
