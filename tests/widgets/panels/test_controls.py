"""Controls come from the fields, carry their words, and cannot leave their bounds."""

from __future__ import annotations

import math

import ipywidgets as widgets
import pytest
from traitlets import TraitError

from minserve import ConfigError, EngineConfig
from minserve.config import describe
from widgets.panels.controls import Control, Pick, Slide, Tick, config_control

CONFIG = EngineConfig()


@pytest.mark.parametrize(
    ("low", "high", "value"), [(0.0, 0.95, 0.9), (0.1, 2.3, 0.7), (0.0, 0.9, 0.0)]
)
def test_a_slider_begins_on_one_of_its_steps(low, high, value):
    slider = Control(Slide("share", low, high, value)).input
    steps = (slider.value - slider.min) / slider.step
    assert steps == pytest.approx(round(steps), abs=1e-9) and 0 < slider.step <= (high - low) / 50


def test_a_field_that_may_be_left_open_speaks_of_automatic_as_its_tick_does():
    for knob in describe():
        if knob.optional and "None: " in knob.doc and knob.type is int:
            given = Slide(knob.path, 64, 128, 64)
            control = config_control(given, EngineConfig())
            assert control.automatic is not None
            words = control.widget.children[-1].value
            assert "Automatic: " in words and "None: " not in words, knob.path


def test_every_field_has_a_control_or_says_why_not():
    made = []
    for knob in describe():
        try:
            control = config_control(knob.path, CONFIG)
        except ValueError as error:
            assert knob.path in str(error)
            continue
        made.append(knob.path)
        assert control.value == CONFIG.get(knob.path)
        assert control.input.description
        text = control.widget.children[-1]
        assert isinstance(text, widgets.HTML) and knob.doc[:12] in text.value
    assert {"memory.kv_cache", "memory.block_size", "scheduling.policy", "dtype"} <= set(made)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("memory.kv_cache", widgets.Checkbox),
        ("scheduling.policy", widgets.Dropdown),
        ("memory.block_size", widgets.SelectionSlider),
        ("memory.watermark", widgets.FloatSlider),
        ("scheduling.max_num_seqs", widgets.SelectionSlider),
    ],
)
def test_the_kind_follows_the_field(path, kind):
    assert isinstance(config_control(path, CONFIG).input, kind)


def test_a_narrow_range_is_a_plain_slider_and_a_wide_one_doubles():
    narrow = config_control(Slide("scheduling.max_num_seqs", 1, 16), CONFIG.with_values(
        {"scheduling.max_num_seqs": 4}))  # fmt: skip
    assert isinstance(narrow.input, widgets.IntSlider)
    assert narrow.input.readout_format == ",d"
    assert (narrow.value, narrow.input.min, narrow.input.max) == (4, 1, 16)
    wide = Control(Slide("kv_bytes", 1 << 20, 1 << 27, 3 << 20, unit="bytes"))
    values = [value for _, value in wide.input.options]
    assert values[0] == 1 << 20 and values[-1] == 1 << 27 and 3 << 20 in values
    assert "MB" in wide.input.options[0][0]
    smooth = Control(Slide("rate", 0.5, 64.0, 8.0))
    assert isinstance(smooth.input, widgets.FloatLogSlider)


def test_values_out_of_bounds_cannot_be_set():
    plain = Control(Slide("n", 1, 16, 4))
    plain.value = 99
    assert plain.value == 16
    doubling = config_control("memory.block_size", CONFIG)
    with pytest.raises(TraitError):
        doubling.value = 4096
    log = Control(Slide("rate", 0.5, 64.0, 8.0))
    log.value = 1e6
    assert log.value == pytest.approx(64.0)
    with pytest.raises(TraitError):
        config_control("scheduling.policy", CONFIG).value = "magic"


def test_a_range_beyond_the_fields_own_is_refused():
    with pytest.raises(ValueError, match="leaves the field's own"):
        config_control(Slide("memory.block_size", 0, 64), CONFIG)
    with pytest.raises(ValueError, match="name its range"):
        config_control("memory.kv_bytes", CONFIG)
    with pytest.raises(ConfigError, match="did you mean"):
        config_control("memory.blocksize", CONFIG)
    with pytest.raises(ValueError, match="is not between"):
        Control(Slide("n", 1, 16, 40))


def test_an_optional_field_can_be_automatic():
    control = config_control(Slide("memory.kv_bytes", 1 << 20, 1 << 24), CONFIG)
    assert control.automatic is not None
    assert control.value is None and control.input.disabled
    control.automatic.value = False
    assert control.value == 1 << 20 and not control.input.disabled
    control.value = None
    assert control.automatic.value is True


def test_changes_are_heard_from_every_part():
    heard = []
    control = config_control(Slide("memory.kv_bytes", 1 << 20, 1 << 24), CONFIG)
    control.observe(lambda: heard.append(control.value))
    control.automatic.value = False
    control.input.value = 1 << 22
    assert heard == [1 << 20, 1 << 22]


def test_a_page_that_puts_a_slider_on_its_nearest_step_changes_nothing():
    start = EngineConfig().with_values({"scheduling.starvation_limit_s": 5.0})
    control = config_control(Slide("scheduling.starvation_limit_s", 0.1, 100.0), start)
    heard = []
    control.observe(lambda: heard.append(control.value))
    slider = control.input
    assert isinstance(slider, widgets.FloatLogSlider)
    # As noUiSlider does it, when the slider comes into view.
    step = round((math.log2(slider.value) - slider.min) / slider.step)
    slider.value = 2 ** round(slider.min + step * slider.step, 7)
    assert slider.value != 5.0 and control.value == 5.0 and heard == []
    slider.value = 2 ** round(slider.min + (step + 1) * slider.step, 7)
    assert heard == [control.value] and control.value > 5.0


def test_a_menu_and_a_tick_for_workloads():
    menu = Control(Pick("kind", ("short", "long"), "long", label="prompts"))
    assert (menu.value, menu.input.description) == ("long", "prompts")
    tick = Control(Tick("same", True))
    tick.value = False
    assert tick.value is False


@pytest.mark.parametrize("value", [0.1, 5.0, 77.7, 100.0])
def test_a_browser_does_not_move_a_logarithmic_slider_by_itself(value):
    control = Control(Slide("limit", 0.1, 100.0, value))
    slider, heard = control.input, []
    steps = (math.log2(value) - slider.min) / slider.step
    assert abs(steps - round(steps)) < 1e-9, "the value lies on a step"
    control.observe(lambda: heard.append(control.value))
    control.input.value = value * (1 + 1e-7)  # what is left of a rounded logarithm
    assert heard == []
    control.input.value = value * 0.9 + 0.02
    assert len(heard) == 1
