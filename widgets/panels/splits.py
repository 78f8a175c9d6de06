"""Splits: what cutting decode attention's contexts into parts gains and costs on a chosen GPU.

Counts and a model, no run of an engine: a press answers at once. Knows nothing about kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minserve.bench.counts.splits import PARTS, SplitCost, Splitting, losing_from
from minserve.hardware import DEVICES
from minserve.spec import MixerSpec
from widgets import theme
from widgets.figures.work.split_sweep import split_sweep
from widgets.panels import views
from widgets.panels.base import Panel
from widgets.panels.controls import Control, Pick, Slide
from widgets.workers import Job


@dataclass(frozen=True)
class SplitsResult:
    """Every number of parts, and the one that was asked about against a single part."""

    splitting: Splitting
    costs: tuple[SplitCost, ...]
    whole: SplitCost
    cut: SplitCost
    losing_from: int | None
    """Requests from which on `cut` is slower than `whole`."""

    @property
    def ratio(self) -> float:
        """Modelled time with the parts over that without."""
        return self.cut.modelled_s / self.whole.modelled_s

    def facts(self) -> dict[str, Any]:
        """Counts and modelled times, the same on every machine."""
        found: dict[str, Any] = {
            theme.format_count(cost.parts, "part"): f"{cost.programs} programs, "
            f"{cost.bytes:,} bytes, modelled {cost.modelled_s * 1e6:.2f} µs"
            for cost in self.costs
        }
        where = self.losing_from
        return found | {
            "the engine takes": f"{self.splitting.chosen()} parts",
            f"{self.cut.parts} parts lose from": "nowhere"
            if where is None
            else f"{where} requests",
        }


class Splits(Panel):
    """Sliders for requests, context and parts; one layer of `mixer`, `itemsize` bytes a number."""

    def __init__(
        self,
        mixer: MixerSpec,
        *,
        requests: int = 1,
        context: int = 1024,
        parts: int = 16,
        gpu: str = "H100 SXM",
        itemsize: int = 2,
        title: str = "Parts of a context",
    ) -> None:
        super().__init__(title)
        self._mixer, self._itemsize = mixer, itemsize
        able = tuple(n for n, d in DEVICES.items() if d.processors and d.memory_bytes_per_s)
        specs = (
            Slide("requests", 1, 256, requests, label="requests that decode"),
            Slide("context", 128, 32_768, context, label="tokens of each context"),
            Pick("parts", PARTS[1:], parts, label="parts, against one"),
            Pick("gpu", able, gpu, label="modelled GPU"),
        )
        self.add_controls(Control(spec) for spec in specs)
        self.settings.children = tuple(control.widget for control in self.controls.values())
        self.words, self.view = views.html(), views.FigureView()
        self.results.children = (self.words, self.view.widget)

    def work(self, job: Job) -> SplitsResult:
        """Count and model."""
        chosen = {name: control.value for name, control in self.controls.items()}
        splitting = Splitting(
            self._mixer, DEVICES[chosen["gpu"]], int(chosen["requests"]), int(chosen["context"]),
            self._itemsize,
        )  # fmt: skip
        parts = int(chosen["parts"])
        return SplitsResult(
            splitting,
            tuple(splitting.costs()),
            splitting.cost(1),
            splitting.cost(parts),
            losing_from(splitting, parts),
        )

    def show(self, result: SplitsResult) -> None:
        """Say which side wins, and draw."""
        word = "slower" if result.ratio > 1 else "faster"
        factor = max(result.ratio, 1 / result.ratio)
        more = result.cut.bytes / result.whole.bytes
        self.words.value = views.headline(
            f"{theme.format_ratio(factor)} {word}",
            f"with {result.cut.parts} parts than with one (modelled), and "
            f"{theme.format_ratio(more)} the bytes (counted)",
        )
        self.view.draw(split_sweep(result.splitting, result.costs))
