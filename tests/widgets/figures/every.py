"""Every figure function of the lab, found by what it returns: rules hold for the next one too.

A function whose arguments all follow from runs is called with runs alone. The others have a call
below, and a new one without is refused by `figure_functions`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping

from minserve.hardware import DEVICES
from minserve.trace import TraceSnapshot
from widgets import figures
from widgets.figures import block_tables, idle_sessions, latency, page_map, roofline_chart
from widgets.figures.lab_figure import LabFigure

Given = Mapping[str, TraceSnapshot]
Call = Callable[[Given], LabFigure]

OF_ONE_RUN: Mapping[str, Call] = {
    "block_tables": lambda runs: block_tables(next(iter(runs.values()))),
    "page_map": lambda runs: page_map(next(iter(runs.values()))),
}
OF_RUNS: Mapping[str, Call] = {
    "latency": lambda runs: latency(runs, ("e2e",)),
    "roofline_chart": lambda runs: roofline_chart(runs, DEVICES["T4"], dtype="float16"),
    "idle_sessions": lambda runs: idle_sessions({name: ["host"] for name in runs}, runs),
}
WITHOUT_RUNS = {
    "answers",
    "launch_bars",
    "returning_sessions",
    "split_sweep",
    "tier_latency",
    "waits",
}
"""Drawn from counts and recordings, which are never half done."""
ELSEWHERE = {"radix_tree", "strips"}
"""Have tests of their own: a growing tree, and a figure that never says a sentence."""


def figure_functions() -> dict[str, Call]:
    """Name -> call, for every public function of `widgets.figures` that draws runs."""
    found: dict[str, Call] = {}
    for module in pkgutil.walk_packages(figures.__path__, "widgets.figures."):
        room = importlib.import_module(module.name)
        for name, function in inspect.getmembers(room, inspect.isfunction):
            if name.startswith("_") or function.__module__ != room.__name__:
                continue
            if typing.get_type_hints(function).get("return") is not LabFigure:
                continue
            if name in WITHOUT_RUNS | ELSEWHERE:
                continue
            found[name] = {**OF_ONE_RUN, **OF_RUNS}.get(name) or _of_runs(name, function)
    return found


def _of_runs(name: str, function: Callable[..., LabFigure]) -> Call:
    first, *rest = inspect.signature(function).parameters.values()
    needed = [each.name for each in rest if each.default is inspect.Parameter.empty]
    if first.name != "runs" or needed:
        raise AssertionError(f"{name} needs {needed or first.name}: give it a call in OF_RUNS")
    return lambda runs: function(runs)


FIGURES = figure_functions()
EXPORTED = {
    name
    for name in figures.__all__
    if inspect.isfunction(getattr(figures, name))
    and typing.get_type_hints(getattr(figures, name)).get("return") is LabFigure
}
