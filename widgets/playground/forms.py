"""The forms around the sides: which model, which clock, which requests.

Knows nothing about runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from minserve.bench.compare.gpu import DTYPES, OWN
from minserve.bench.compare.setup import MOST_ROUNDS, Setup
from minserve.bench.compare.workload import KINDS, Parameter, Workload
from minserve.bench.workloads.shapes import SHAPES
from minserve.hardware import DEVICES
from minserve.loading import ZOO
from widgets.metrics import METRICS
from widgets.panels import views
from widgets.panels.comparison.verdict import LEAST_ROUNDS
from widgets.playground.fields import labelled, ungrouped
from widgets.playground.state import State

DIRECTORY = "a directory…"
MACHINE, WORKLOAD = "machine", "workload"
"""The places of these two forms. Below the second a dot and the input's name."""
PROMPTS = f"{WORKLOAD}.prompts"
_CLOCKS = (("this machine (measured)", "wall"), ("virtual clock (modelled)", "virtual"))
_PROMPTS_ON_VIRTUAL = (
    "On the virtual clock no token is computed: your prompts count only as lengths and shared "
    "prefixes, and nothing is written."
)
_VIRTUAL = (
    "On the virtual clock the real scheduler and page pool run, and time is modelled: this "
    "machine's own speed plays no part."
)


class MachineForm:
    """Model, clock, and the modelled GPU with its sliders."""

    def __init__(self, state: State) -> None:
        self._state = state
        zoo = sorted(f"zoo/{each.parent.name}" for each in ZOO.glob("*/config.json"))
        shapes = [(f"{name} (shape, virtual clock only)", name) for name in SHAPES]
        options = [*((name, name) for name in zoo), *shapes, (DIRECTORY, DIRECTORY)]
        self.model = widgets.Dropdown(options=options, **labelled("Model"))
        self.directory = widgets.Text(
            placeholder="path of a directory with a model", continuous_update=False,
            **labelled("Directory"),
        )  # fmt: skip
        self.clock = widgets.Dropdown(options=_CLOCKS, **labelled("Clock"))
        usable = [name for name, each in DEVICES.items() if each.memory_bytes_per_s
                  and each.dense_flops]  # fmt: skip
        gpus = [*((name, name) for name in usable), ("your own GPU", OWN)]
        self.gpu = widgets.Dropdown(options=gpus, **labelled("Modelled GPU"))
        self.dtype = widgets.Dropdown(options=DTYPES, **labelled("Number format"))
        self.sliders = {
            "flops_per_s": _Slider("Arithmetic, TFLOP/s", 1e12, 0.1, 10_000),
            "bytes_per_s": _Slider("Bandwidth, GB/s", 1e9, 1, 20_000),
            "memory_bytes": _Slider("Capacity, GB", 1e9, 0.1, 1000),
            "efficiency": _Slider("Share of the roofline reached", 1.0, 0.01, 1.0),
            "overhead_s": _Slider("Overhead per step, ms", 1e-3, 0.001, 100),
        }
        self._own = widgets.VBox(
            [self.sliders[name].widget for name in ("flops_per_s", "bytes_per_s", "memory_bytes")]
        )
        charged = [self.sliders[name].widget for name in ("efficiency", "overhead_s")]
        self._virtual = widgets.VBox(
            [views.html(views.sentence(_VIRTUAL, "info")), self.gpu, self._own, self.dtype,
             *charged]
        )  # fmt: skip
        # A box for text: one for numbers would bend what it cannot hold, and say nothing.
        self.rounds = widgets.Text(
            placeholder=f"1 to {MOST_ROUNDS}", continuous_update=False,
            **labelled(f"Rounds (a verdict needs {LEAST_ROUNDS})"),
        )  # fmt: skip
        self.refused = views.html()
        self.widget = widgets.VBox(
            [self.model, self.directory, self.clock, self.rounds, self._virtual, self.refused]
        )
        self._watch()
        state.listen(self.show)
        self.show()

    def _watch(self) -> None:
        state = self._state
        self.model.observe(lambda change: self._choose_model(change["new"]), "value")
        self.directory.observe(lambda change: self._choose_directory(change["new"]), "value")
        self.clock.observe(lambda change: state.edit(MACHINE, clock=change["new"]), "value")
        self.rounds.observe(lambda change: self._count_rounds(change["new"]), "value")
        self.gpu.observe(lambda change: self._gpu(name=change["new"]), "value")
        self.dtype.observe(lambda change: self._gpu(dtype=change["new"]), "value")
        for name, slider in self.sliders.items():
            slider.observe(partial(self._slid, name))

    def _choose_model(self, name: str) -> None:
        if name == DIRECTORY:
            self.directory.layout.display = ""
            return
        clock = "virtual" if name in SHAPES else self._state.setup.clock
        self._state.edit(MACHINE, model=name, clock=clock)

    def _choose_directory(self, path: str) -> None:
        if path.strip():
            self._state.edit(MACHINE, model=str(Path(path.strip()).expanduser()))

    def _count_rounds(self, text: str) -> None:
        number = _number(text)
        whole = isinstance(number, float) and number.is_integer()
        self._state.edit(MACHINE, rounds=int(number) if whole else text)

    def _gpu(self, **fields: Any) -> None:
        self._state.change(lambda setup: replace(setup, gpu=replace(setup.gpu, **fields)), MACHINE)

    def _slid(self, name: str, value: float) -> None:
        self._gpu(**{name: round(value) if name == "memory_bytes" else value})

    def show(self) -> None:
        """Show the setup as it stands."""
        setup = self._state.setup
        known = [value for _, value in self.model.options]
        chosen = setup.model if setup.model in known else DIRECTORY
        self.model.value = chosen
        self.directory.value = setup.model if chosen == DIRECTORY else ""
        self.directory.layout.display = "" if chosen == DIRECTORY else "none"
        self.clock.value = setup.clock
        self.rounds.value = str(setup.rounds)
        virtual = setup.clock == "virtual"
        self._virtual.layout.display = "" if virtual else "none"
        self.rounds.layout.display = "none" if virtual else ""
        if setup.gpu.name in [value for _, value in self.gpu.options]:
            self.gpu.value = setup.gpu.name
        self._own.layout.display = "" if setup.gpu.name == OWN else "none"
        self.dtype.value = setup.gpu.dtype
        for name, slider in self.sliders.items():
            slider.show(float(getattr(setup.gpu, name)))
        self.refused.value = views.sentence(self._state.refused_at(MACHINE), "problem")


class _Slider:
    """A logarithmic slider of a number that is kept in another unit."""

    def __init__(self, label: str, unit: float, low: float, high: float) -> None:
        self._unit = unit
        self._setting = False
        self.widget = widgets.FloatLogSlider(
            value=high, base=10, min=math.log10(low), max=math.log10(high), step=0.01,
            readout_format=",.3r", continuous_update=False, **labelled(label),
        )  # fmt: skip

    def show(self, value: float) -> None:
        self._setting = True
        try:
            self.widget.value = value / self._unit
        finally:
            self._setting = False

    def observe(self, heard: Callable[[float], None]) -> None:
        def moved(change: dict[str, Any]) -> None:
            if not self._setting:
                # The page computes with rounded logarithms.
                heard(float(f"{change['new'] * self._unit:.4g}"))

        self.widget.observe(moved, "value")


class WorkloadForm:
    """Which requests arrive. Inputs of a kind are made when it is first chosen."""

    def __init__(self, state: State) -> None:
        self._state = state
        labels = [(kind.label, name) for name, kind in KINDS.items()]
        self.kind = widgets.Dropdown(options=labels, **labelled("Workload"))
        self.doc = views.html()
        self.prompts = widgets.Textarea(
            rows=6, placeholder="one prompt per line", continuous_update=False,
            **labelled("Your prompts"),
        )  # fmt: skip
        self.inputs: dict[str, dict[str, Any]] = {}
        self.refused = views.html()
        """Why a value was refused: below the input that it was typed into."""
        self._box = widgets.VBox([])
        self.headline = widgets.Dropdown(
            options=[(metric.label, name) for name, metric in METRICS.items()],
            **labelled("The verdict is about"),
        )
        self.widget = widgets.VBox([self.kind, self.doc, self.prompts, self._box, self.headline])
        self.kind.observe(lambda change: self._choose(change["new"]), "value")
        self.prompts.observe(lambda change: self._write(change["new"]), "value")
        self.headline.observe(lambda change: state.edit(WORKLOAD, headline=change["new"]), "value")
        state.listen(self.show)
        self.show()

    def _choose(self, kind: str) -> None:
        # Values of the same name are kept: a rate is a rate.
        def chosen(setup: Setup) -> Setup:
            names = {parameter.name: parameter for parameter in KINDS[kind].parameters}
            kept = {n: v for n, v in setup.workload.values.items() if n in names}
            old = setup.workload
            return replace(setup, workload=Workload(kind, kept, old.prompts, old.rows))

        self._state.change(chosen, WORKLOAD)

    def _write(self, text: str) -> None:
        lines = tuple(line.rstrip() for line in text.splitlines() if line.strip())
        self._workload("prompts", prompts=lines)

    def _workload(self, name: str, **fields: Any) -> None:
        self._state.change(
            lambda setup: replace(setup, workload=replace(setup.workload, **fields)),
            f"{WORKLOAD}.{name}",
        )

    def _typed(self, name: str, value: Any) -> None:
        kind = KINDS[self._state.setup.workload.kind]
        parameter = next(each for each in kind.parameters if each.name == name)
        if not (parameter.text or parameter.choices):
            value = _number(value)
        self._workload(name, values={**self._state.setup.workload.values, name: value})

    def show(self) -> None:
        """Show the setup as it stands."""
        setup = self._state.setup
        workload = setup.workload
        kind = KINDS[workload.kind]
        self.kind.value = workload.kind
        text = views.sentence(kind.doc, "info")
        if workload.kind == "prompts" and setup.clock == "virtual":
            text += views.sentence(_PROMPTS_ON_VIRTUAL, "info")
        if workload.kind == "listed":
            text += views.sentence(f"{len(workload.rows):,} requests.", "info")
        self.doc.value = text
        self.prompts.layout.display = "" if workload.kind == "prompts" else "none"
        # Prompts that are refused stay to be mended.
        if not self._state.refused_at(PROMPTS):
            self.prompts.value = "\n".join(workload.prompts)
        if workload.kind not in self.inputs:
            self.inputs[workload.kind] = {
                parameter.name: self._made(parameter) for parameter in kind.parameters
            }
        inputs = self.inputs[workload.kind]
        for name, each in inputs.items():
            each.value = _shown(workload.get(name))
        self._box.children = tuple(self._with_refusal(inputs))
        if setup.headline in METRICS:
            self.headline.value = setup.headline

    def _with_refusal(self, inputs: Mapping[str, Any]) -> Iterator[Any]:
        """The inputs, and `refused` below the one that it is about; first, below the prompts."""
        place = self._state.place
        said = self._state.problem if place.startswith(WORKLOAD) else ""
        self.refused.value = views.sentence(said, "problem")
        name = place.removeprefix(f"{WORKLOAD}.")
        if name not in inputs:
            yield self.refused
        for each, made in inputs.items():
            yield made
            if each == name:
                yield self.refused

    def _made(self, parameter: Parameter) -> Any:
        shared = labelled(parameter.label)
        made: Any
        if parameter.text:
            made = widgets.Text(continuous_update=False, **shared)
        elif parameter.choices:
            made = widgets.Dropdown(options=parameter.choices, **shared)
        else:
            # A box for text: one for numbers would bend what it cannot hold, and say nothing.
            made = widgets.Text(continuous_update=False, **shared)
            made.placeholder = parameter.span
        made.style.description_width = "20rem"
        made.observe(lambda change: self._typed(parameter.name, change["new"]), "value")
        return made


def _number(text: str) -> float | str:
    """The number that was typed; what is none stays text, and is refused in a sentence."""
    try:
        return float(ungrouped(text))
    except ValueError:
        return text


def _shown(value: Any) -> str:
    """A value of a workload as its box shows it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)
