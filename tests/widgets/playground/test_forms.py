"""Every form shows what holds, changes one thing, and refuses in a sentence what cannot be."""

from __future__ import annotations

import re

import pytest

from minserve.bench.compare.gpu import OWN
from minserve.bench.compare.setup import KEPT_OUT
from minserve.bench.compare.workload import KINDS
from minserve.build import resolve_virtual
from minserve.config import ConfigError, EngineConfig, describe
from minserve.hardware import DEVICES
from tests.widgets.playground.small import FOUR
from widgets.playground import Playground
from widgets.playground.editor import sections
from widgets.playground.fields import REFUSED
from widgets.playground.forms import DIRECTORY


def words(html):
    return re.sub(r"<[^>]*>", " ", html).replace("&#x27;", "'").replace("&quot;", '"')


@pytest.fixture
def play(headless):
    made = Playground()
    assert made.state.change(lambda setup: FOUR)
    return made


def changed_buttons(play):
    rows = [row for row in play.editor.changes.children if hasattr(row, "children")]
    return {button.tooltip: button for row in rows for button in row.children}


# Sides and fields.


def test_there_is_a_fold_for_every_section_and_an_input_for_every_field(play):
    assert {knob.path for each in sections().values() for knob in each} == {
        knob.path for knob in describe()
    } - set(KEPT_OUT)
    assert play.editor.inputs == {}, "inputs are made when a section is opened"
    for section in sections():
        play.editor.open(section)
    assert set(play.editor.inputs) == {knob.path for knob in describe()} - set(KEPT_OUT)
    titles = " ".join(play.editor.folds.titles)
    assert all(section in titles for section in ("general", "memory", "scheduling", "kernels"))
    for path, each in play.editor.inputs.items():
        knob = each.knob
        told = words(each.widget.children[1].value)
        assert knob.doc[:20] in told and "None: " not in told, path
        assert ("Automatic (left empty): " in told) == ("None: " in knob.doc), path


def test_a_choice_of_the_reader_changes_the_chosen_side_and_stands_on_top(play):
    play.editor.side.value = "static"
    play.editor.open("memory")
    play.editor.inputs["memory.prefix_cache"].input.value = "hash"
    assert play.setup.changes("static") == {
        "scheduling.policy": "static", "memory.prefix_cache": "hash",
    }  # fmt: skip
    buttons = changed_buttons(play)
    button = buttons["Take back: memory.prefix_cache of static"]
    assert button.description == "memory.prefix_cache = hash"
    button.click()
    assert play.setup.changes("static") == {"scheduling.policy": "static"}
    assert play.editor.inputs["memory.prefix_cache"].input.value == "off"
    assert "Take back: memory.prefix_cache of static" not in changed_buttons(play)


def test_the_value_that_the_base_has_is_no_change(play):
    play.editor.side.value = "static"
    play.editor.open("scheduling")
    play.editor.inputs["scheduling.policy"].input.value = "continuous"
    assert play.setup.changes("static") == {}
    assert "static changes nothing of “base”" in re.sub(
        r"\s+", " ", " ".join(words(row.value) for row in play.editor.changes.children
                              if hasattr(row, "value"))
    )  # fmt: skip


def test_a_change_of_the_base_reaches_every_variant(play):
    play.editor.open("memory")
    play.editor.inputs["memory.block_size"].input.value = "8"
    assert {config.memory.block_size for config in play.setup.configs().values()} == {8}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("memory.kv_bytes", "3MiB", 3 << 20),
        ("memory.kv_bytes", "", None),
        ("scheduling.max_num_batched_tokens", "96", 96),
        ("scheduling.max_num_batched_tokens", "none", None),
        ("memory.watermark", "0.25", 0.25),
        ("seed", "-3", -3),
    ],
)
def test_numbers_are_typed_and_shown_again(play, path, text, value):
    play.editor.open(path.split(".")[0] if "." in path else "general")
    play.editor.inputs[path].input.value = "1" if path == "seed" else "0.125"
    play.editor.inputs[path].input.value = text
    assert play.setup.config("base").get(path) == value
    again = Playground(play.code)
    again.editor.open(path.split(".")[0] if "." in path else "general")
    assert again.editor.inputs[path].input.value == play.editor.inputs[path].input.value


def test_a_combination_that_cannot_work_is_refused_with_the_rules_own_sentence(play):
    play.editor.side.value = "static"
    play.editor.open("scheduling")
    field = play.editor.inputs["scheduling.order"]
    labels = {value: label for label, value in field.input.options}
    assert REFUSED in labels["lpm"] and REFUSED not in labels["sjf"]
    field.input.value = "lpm"
    config = play.setup.config("static")
    with pytest.raises(ConfigError) as refused:
        resolve_virtual(play.setup.spec(), config, play.setup.gpu.cost())
    assert f"“static” cannot run: {refused.value}" in words(play.editor.refused.value)
    play.pressed_run()
    assert str(refused.value) in words(play.problem.value) and play.last is None
    # A step on the way: with the other field it can run.
    play.state.set("static", "memory.prefix_cache", "radix")
    assert play.editor.refused.value == "" and play.state.refusals() == {}


def test_what_was_settled_is_said_for_every_side(play):
    play.state.set("base", "dtype", "auto")
    text = words(play.editor.settled.value)
    resolved = play.setup.resolved("base")
    assert "scheduling.max_num_batched_tokens: " in text and "512 (left open)" in text
    assert all(note in text for note in resolved.notes)
    assert all(name in text for name in play.setup.names)


def test_variants_are_added_up_to_three_named_and_removed(play):
    assert play.editor.add.disabled, "three are there"
    play.editor.side.value = "radix"
    play.editor.remove.click()
    assert play.setup.names == ("base", "static", "one by one") and not play.editor.add.disabled
    play.editor.add.click()
    assert play.editor.chosen == "variant 1" == play.setup.names[-1]
    play.editor.name.value = "mine"
    assert play.editor.chosen == "mine" == play.setup.names[-1]
    play.editor.name.value = "static"
    assert play.setup.names[-1] == "mine" and "same name" in words(play.editor.refused.value)
    play.editor.side.value = "base"
    assert play.editor.remove.disabled
    play.editor.name.value = "start"
    assert play.setup.base_name == "start"


# Model, clock, GPU, workload.


def test_hiding_one_input_hides_no_other(play):
    play.machine.model.value = "zoo/base"
    shown = [play.machine.model, play.machine.clock, play.workload.kind, play.workload.headline]
    assert play.machine.directory.layout.display == play.workload.prompts.layout.display == "none"
    assert [each.layout.display for each in shown] == [None] * 4


def test_three_sliders_make_a_gpu_of_your_own(play):
    form = play.machine
    form.gpu.value = OWN
    form.sliders["flops_per_s"].widget.value = 50.0
    form.sliders["bytes_per_s"].widget.value = 500.0
    form.sliders["memory_bytes"].widget.value = 12.0
    device = play.setup.gpu.device
    assert device.dense_flops["bfloat16"] == 50e12 and device.memory_bytes_per_s == 500e9
    assert device.memory_bytes == 12 * 10**9 and device.name not in DEVICES
    play.run()
    assert play.result.traces["base"].header.device == device.name
    slow = play.result.traces["base"].totals.duration_s
    form.sliders["overhead_s"].widget.value = 1.0
    play.run()
    assert play.result.traces["base"].totals.duration_s > slow


def test_a_gpu_without_the_figures_is_a_sentence(play):
    play.machine.gpu.value = "T4"
    assert "no sourced figure for bfloat16" in words(play.editor.refused.value)
    play.machine.dtype.value = "float16"
    assert play.editor.refused.value == ""


def test_a_shape_is_for_the_virtual_clock_and_says_so(play):
    play.machine.model.value = "llama-3.1-8b"
    assert play.setup.clock == "virtual" and play.state.refusals() == {}
    play.machine.clock.value = "wall"
    assert "a shape without weights" in words(play.editor.refused.value)


def test_a_directory_is_a_model_and_one_that_is_not_there_is_a_sentence(play, tmp_path):
    from minserve.loading import find_model

    play.machine.model.value = DIRECTORY
    assert play.machine.directory.layout.display == ""
    play.machine.directory.value = str(tmp_path / "nothing")
    assert "there is no model" in words(play.editor.refused.value)
    play.machine.directory.value = str(find_model("zoo/draft"))
    assert play.state.refusals() == {}
    play.run()
    assert play.result.counts["base"].requests == 6


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_inputs_and_they_change_it(play, kind):
    play.workload.kind.value = kind
    assert play.setup.workload.kind == kind
    inputs = play.workload.inputs[kind]
    assert list(inputs) == [parameter.name for parameter in KINDS[kind].parameters]
    for parameter in KINDS[kind].parameters:
        if parameter.text:
            continue
        other = parameter.choices[-1] if parameter.choices else type(parameter.default)(
            min(parameter.high, parameter.default + 1)
        )  # fmt: skip
        inputs[parameter.name].value = str(other)
        assert play.setup.workload.get(parameter.name) == other
    assert Playground(play.code).setup == play.setup


def test_labels_fit_beside_their_inputs():
    labels = [parameter.label for kind in KINDS.values() for parameter in kind.parameters]
    assert max(map(len, labels)) <= 46, max(labels, key=len)


def test_values_of_the_same_name_stay_when_another_kind_is_chosen(play):
    play.workload.kind.value = "conversations"
    play.workload.inputs["conversations"]["rate"].value = "3.0"
    play.workload.kind.value = "few-shot"
    assert play.setup.workload.number("rate") == 3.0
    assert play.workload.inputs["few-shot"]["rate"].value == "3"


def test_prompts_are_one_per_line(play):
    play.workload.kind.value = "prompts"
    assert play.workload.prompts.layout.display == ""
    play.workload.prompts.value = "def f(x):\n\n  import os  \n"
    assert play.setup.workload.prompts == ("def f(x):", "  import os")


# Codes.


def test_a_code_restores_everything_and_nothing_runs(play):
    other = Playground()
    assert other.setup != play.setup
    other.code_box.value = play.code
    other.restore_button.click()
    assert other.setup == play.setup and other.code == play.code
    assert other.editor.side.options == play.setup.names
    assert other.machine.model.value == "zoo/base" and other.machine.clock.value == "virtual"
    assert other.last is None and not other.under_way


def test_results_of_another_setup_are_greyed_out(play):
    play.run()
    assert not play.outcome.stale
    play.state.set("static", "memory.prefix_cache", "hash")
    assert play.outcome.stale
    play.state.take_back("static", "memory.prefix_cache")
    assert not play.outcome.stale


def test_the_defaults_of_the_engine_are_where_a_base_begins(headless):
    play = Playground()
    for path in play.setup.base:
        play.state.take_back("base", path)
    assert play.setup.config("base") == EngineConfig()
