"""Sliders, menus and ticks from what a configuration field or a workload says about itself.

A control cannot hold a value outside its field's bounds. Every one has a label and a sentence, and
all work from the keyboard. Knows nothing about panels or engines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from html import escape
from typing import Any

import ipywidgets as widgets

from minserve.config import EngineConfig, Knob, describe
from widgets import theme

WIDE_RANGE = 32
"""A range whose ends differ by more than this factor gets a logarithmic slider."""

_WIDTH = widgets.Layout(width="min(36rem, 98%)")
_STYLE = {"description_width": "13rem"}


@dataclass(frozen=True)
class Slide:
    """A number between two bounds. Whole numbers where both bounds are whole."""

    name: str
    low: float
    high: float
    value: float | None = None
    label: str = ""
    unit: str = ""
    doc: str = ""
    log: bool | None = None
    """None: logarithmic where the range is wide."""


@dataclass(frozen=True)
class Pick:
    """One of a few values."""

    name: str
    options: tuple[Any, ...]
    value: Any = None
    label: str = ""
    doc: str = ""


@dataclass(frozen=True)
class Tick:
    """On or off."""

    name: str
    value: bool = False
    label: str = ""
    doc: str = ""


Spec = Slide | Pick | Tick


class Control:
    """A labelled input; `widget` is what the reader sees, `value` what the program gets."""

    def __init__(self, spec: Spec, optional: bool = False, automatic: bool = False) -> None:
        self.spec = spec
        self.name = spec.name
        self.input = _make_input(spec)
        parts: list[widgets.Widget] = [self.input]
        self.automatic: widgets.Checkbox | None = None
        if optional:
            self.automatic = widgets.Checkbox(
                value=automatic,
                description=f"{spec.label or spec.name}: automatic",
                indent=False,
                layout=widgets.Layout(width="auto"),
            )
            self.input.disabled = automatic
            self.automatic.observe(self._switch, "value")
            parts.append(self.automatic)
        if spec.doc:
            # In the page, not in a tooltip: those are out of reach of a keyboard.
            doc = f'<span style="opacity:.75;font-size:12px">{escape(spec.doc)}</span>'
            parts.append(widgets.HTML(doc))
        self.widget = widgets.VBox(parts)

    @property
    def value(self) -> Any:
        """The chosen value; None for automatic."""
        if self.automatic is not None and self.automatic.value:
            return None
        value = self.input.value
        # The page computes with rounded logarithms: 5.0000000177 is the 5 that was given.
        return float(f"{value:.4g}") if isinstance(self.input, widgets.FloatLogSlider) else value

    @value.setter
    def value(self, value: Any) -> None:
        if self.automatic is not None:
            self.automatic.value = value is None
        if value is not None:
            self.input.value = value

    def observe(self, heard: Callable[[], None]) -> None:
        """Call `heard` after every change, except a browser's rounding of what was set."""
        for part in (self.input, self.automatic):
            if part is not None:
                part.observe(lambda change: None if _rounded(change) else heard(), "value")

    def _switch(self, change: dict[str, Any]) -> None:
        self.input.disabled = bool(change["new"])


def _rounded(change: Mapping[str, Any]) -> bool:
    old, new = change["old"], change["new"]
    return (
        isinstance(old, float) and isinstance(new, float) and math.isclose(old, new, rel_tol=1e-5)
    )


def config_control(field: str | Spec, config: EngineConfig) -> Control:
    """The control of a configuration field, at the value it has in `config`.

    `field` is a dotted path, or a `Slide` or `Pick` named by one, where the chapter narrows the
    range. Raises ConfigError for an unknown path, ValueError for a field no control can hold.
    """
    given = None if isinstance(field, str) else field
    path = field if isinstance(field, str) else field.name
    value = config.get(path)
    knob = next(entry for entry in describe() if entry.path == path)
    spec = given if isinstance(given, Pick) else _spec_of(knob, value, given)
    label = spec.label or path
    doc = spec.doc or knob.doc
    if knob.optional:
        # The tick beside the slider is called "automatic".
        doc = doc.replace("None: ", "Automatic: ")
    return Control(replace(spec, label=label, doc=doc), knob.optional, value is None)


def _spec_of(knob: Knob, value: Any, given: Spec | None) -> Spec:
    if knob.choices:
        return Pick(knob.path, knob.choices, value)
    if knob.type is bool:
        return Tick(knob.path, bool(value))
    if knob.type not in (int, float):
        raise ValueError(f"{knob.path}: no control can hold a free {knob.type.__name__}")
    if isinstance(given, (Tick, Pick)):
        raise ValueError(f"{knob.path} is a number: give a Slide or a Pick")
    least, most = _bounds(knob.path)
    if given is None:
        low = least
        high = most if most is not None else None if value is None else 16 * value
    else:
        low, high = given.low, given.high
        if (least is not None and low < least) or (most is not None and high > most):
            raise ValueError(
                f"{knob.path}: the range {low} to {high} leaves the field's own, "
                f"{least if least is not None else 'no least value'} to "
                f"{most if most is not None else 'no largest value'}"
            )
    if low is None or high is None:
        raise ValueError(
            f"{knob.path} has no bounds of its own: name its range, for example "
            f"Slide({knob.path!r}, 1, 64)"
        )
    start = value if value is not None else (given.value if given else None) or low
    found = Slide(knob.path, low, high, min(max(start, low), high), unit=knob.unit)
    if given is None:
        return found
    return replace(found, log=given.log, label=given.label, doc=given.doc)


def _bounds(path: str) -> tuple[float | None, float | None]:
    section, _, name = path.rpartition(".")
    owner = getattr(EngineConfig(), section) if section else EngineConfig()
    meta = next(item.metadata for item in fields(owner) if item.name == name)
    return meta["at_least"], meta["at_most"]


def _make_input(spec: Spec) -> Any:
    shared = {"description": spec.label or spec.name, "style": _STYLE, "layout": _WIDTH}
    if isinstance(spec, Tick):
        return widgets.Checkbox(value=spec.value, **shared | {"style": {}}, indent=False)
    if isinstance(spec, Pick):
        value = spec.options[0] if spec.value is None else spec.value
        return widgets.Dropdown(options=list(spec.options), value=value, **shared)
    low, high = spec.low, spec.high
    value = low if spec.value is None else spec.value
    if not low <= value <= high:
        raise ValueError(f"{spec.name}: {value} is not between {low} and {high}")
    log = spec.log if spec.log is not None else low > 0 and high / low > WIDE_RANGE
    whole = all(float(number).is_integer() for number in (low, high, value))
    if log and not whole:
        ends = {"min": math.log2(low), "max": math.log2(high), "base": 2}
        # About a tenth of a doubling, and the value on a step: a browser moves to the nearest one.
        way = math.log2(value / low)
        ends["step"] = way / max(1, round(way / 0.1)) or 0.1
        return widgets.FloatLogSlider(
            value=value, **ends, readout_format=".3g", continuous_update=True, **shared
        )
    if log:
        options = _doublings(int(low), int(high), int(value))
        labels = [(_with_unit(number, spec.unit), number) for number in options]
        return widgets.SelectionSlider(options=labels, value=int(value), **shared)
    if whole:
        ends = {"min": int(low), "max": int(high), "readout_format": ",d"}
        return widgets.IntSlider(value=int(value), **ends, **shared)
    # About a hundredth of the range, and the value on a step: a browser moves to the nearest one.
    step = (high - low) / 100
    way = value - low
    step = way / max(1, round(way / step)) or step
    return widgets.FloatSlider(value=value, min=low, max=high, step=step, **shared)


def _doublings(low: int, high: int, value: int) -> Sequence[int]:
    found = {low, high, value}
    number = 1
    while number <= high:
        if number >= low:
            found.add(number)
        number *= 2
    return sorted(found)


def _with_unit(number: int, unit: str) -> str:
    if unit == "bytes":
        return theme.format_bytes(number)
    return f"{number:,} {unit}".strip()
