"""From a chapter's comparison to the playground: its code, and what the playground does otherwise.

The code is made when the reader opens the fold. Knows nothing about the playground's panels: a
setup and its code are `minserve.bench.compare`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape

import ipywidgets as widgets

from minserve.bench.compare.code import encode
from minserve.bench.compare.errors import SetupError
from minserve.bench.compare.gpu import OWN, Gpu
from minserve.bench.compare.listed import rows_of
from minserve.bench.compare.setup import KEPT_OUT, MOST_NAME, MOST_ROUNDS, Setup, Variant
from minserve.bench.compare.workload import MOST_ROWS, Workload
from minserve.bench.workloads.shapes import SHAPES
from minserve.bench.workloads.traffic import Traffic
from minserve.config import ConfigError, EngineConfig
from minserve.hardware import DEVICES, DeviceSpec
from minserve.virtual import CostModel, LaunchCost
from widgets.metrics import METRICS, Metric
from widgets.panels import views

TITLE = "Open in the playground"
NOTEBOOK = "02_playground.ipynb"
_HOW = (
    "Copy this code, open the playground, paste it into “Code” there, and press “Restore”. The "
    "sides become its base and a variant, which you can change as you like."
)
_DRAWN_AGAIN = (
    "The requests have the same lengths, arrivals and shared prefixes; their tokens are drawn anew."
)


class PlaygroundFold:
    """The fold under a comparison. `make` gives the setup, and sentences on what is left out."""

    def __init__(self, make: Callable[[], tuple[Setup, list[str]]]) -> None:
        self._make = make
        self.code = widgets.Textarea(
            rows=3, disabled=False, description="Code",
            layout=widgets.Layout(width="min(44rem, 98%)"),
        )  # fmt: skip
        self.words = views.html()
        self.widget = views.Accordion((widgets.VBox([self.words, self.code]),), (TITLE,))
        self.widget.observe(lambda change: self._opened(), "selected_index")

    def _opened(self) -> None:
        if self.widget.selected_index is None:
            return
        try:
            setup, notes = self._make()
            self.code.value = encode(setup)
        except (SetupError, ConfigError) as error:
            self.code.value = ""
            self.words.value = views.sentence(f"It cannot be opened there: {error}", "problem")
            return
        link = f'<a href="{NOTEBOOK}" target="_blank">{escape(NOTEBOOK)}</a>'
        said = " ".join([_DRAWN_AGAIN, *notes])
        self.words.value = f"{views.sentence(_HOW)}<p>{link}</p>{views.sentence(said, 'info')}"


def setup_of(
    configs: Mapping[str, EngineConfig],
    traffic: Traffic,
    model: str,
    cost: CostModel | None,
    headline: Metric,
    rounds: int,
) -> tuple[Setup, list[str]]:
    """The setup of a comparison of two sides, and sentences on what the playground does otherwise.

    Raises SetupError where it cannot be said there.
    """
    notes: list[str] = []
    (first, base), (second, other) = configs.items()
    start, ours, theirs = (c.to_dict() for c in (EngineConfig(), base, other))
    for path in KEPT_OUT:
        if ours[path] != start[path] or theirs[path] != start[path]:
            notes.append(f"{path} has its default there: {KEPT_OUT[path]}.")
        ours[path] = theirs[path] = start[path]
    if cost is not None and model not in SHAPES and not model.startswith("zoo/"):
        raise SetupError(f"the modelled shape {model!r} is not one of {', '.join(SHAPES)}")
    name = headline.name
    if name not in METRICS:
        name = "duration_s"
        notes.append(f"The verdict is about the {METRICS[name].label}, not {headline.label}.")
    setup = Setup(
        model=model,
        base={path: value for path, value in ours.items() if value != start[path]},
        base_name=first[:MOST_NAME],
        variants=(
            Variant(
                second[:MOST_NAME],
                {path: value for path, value in theirs.items() if value != ours[path]},
            ),
        ),
        workload=_workload(traffic, notes),
        clock="wall" if cost is None else "virtual",
        gpu=Gpu() if cost is None else _gpu(cost, notes),
        headline=name,
        rounds=min(max(rounds, 3), MOST_ROUNDS),
    )
    return setup, notes


def _workload(traffic: Traffic, notes: list[str]) -> Workload:
    rows = rows_of(traffic)
    if len(rows) > MOST_ROWS:
        notes.append(f"The first {MOST_ROWS:,} of {len(rows):,} requests are taken.")
    params = [request.params for request in traffic.requests]
    if any(
        p.max_tokens is None or p.max_tokens != p.min_tokens or not p.ignore_eos for p in params
    ):
        notes.append("Every answer has its largest length.")
    if any(p.temperature for p in params):
        notes.append("Answers are greedy.")
    return Workload("listed", {"rate": traffic.rate_per_s or 0.0}, rows=rows[:MOST_ROWS])


def _gpu(cost: CostModel, notes: list[str]) -> Gpu:
    device = cost.device
    if not isinstance(device, DeviceSpec):
        raise SetupError("its clock models this machine as measured, which a code cannot carry")
    values: dict[str, object] = {"name": device.name}
    if DEVICES.get(device.name) != device:
        values = {
            "name": OWN,
            "flops_per_s": device.flops_per_s(cost.dtype),
            "bytes_per_s": device.memory_bytes_per_s or 0.0,
            "memory_bytes": device.memory_bytes,
        }
    if isinstance(cost, LaunchCost):
        notes.append("Launches of the host take no time of their own there.")
    if cost.link is not None:
        values |= {
            "link_bytes_per_s": cost.link.bytes_per_s,
            "link_latency_s": cost.link.latency_s,
            "disk_bytes_per_s": cost.link.disk_bytes_per_s,
        }
    return Gpu(dtype=cost.dtype, efficiency=cost.efficiency, overhead_s=cost.overhead_s, **values)  # type: ignore[arg-type]
