"""What stands under a figure is what was asked for, not what followed from it."""

from __future__ import annotations

from typing import Any

import pytest

from minserve.build import build_engine, build_virtual_engine
from minserve.config import EngineConfig
from minserve.hardware import DEVICES
from minserve.loading import find_model, load_model
from minserve.models import load_spec
from minserve.trace import RunTrace, TraceHeader
from minserve.virtual import CostModel
from widgets.provenance import Provenance

COST = CostModel(DEVICES["T4"], "float16", efficiency=0.5, overhead_s=1e-3)


def header(values: dict[str, Any]) -> TraceHeader:
    """Of an engine with these settings, through a file and back."""
    config = EngineConfig().with_values(values)
    engine = build_virtual_engine(load_spec(find_model("zoo/draft")), config, COST, "zoo/draft")
    return RunTrace.from_json(engine.trace.to_json()).header


@pytest.mark.parametrize(
    ("base", "switch"),
    [
        ({"memory.layout": "contiguous"}, {"memory.layout": "paged"}),
        (
            {"scheduling.enable_chunked_prefill": False},
            {"scheduling.enable_chunked_prefill": True},
        ),
        ({"memory.kv_cache": False}, {"memory.kv_cache": True}),
        ({"scheduling.policy": "static"}, {"scheduling.policy": "continuous"}),
        ({"scheduling.order": "fcfs"}, {"scheduling.order": "mlfq"}),
    ],
)
def test_the_switch_is_the_only_difference(base: dict[str, Any], switch: dict[str, Any]) -> None:
    sides = {"off": header(base), "on": header({**base, **switch})}
    assert Provenance.of(sides).differences == {"off": base, "on": switch}


def test_a_value_that_was_asked_for_is_a_difference_though_another_would_be_filled_in() -> None:
    asked = {"scheduling.max_num_batched_tokens": 64}
    found = Provenance.of({"off": header({}), "on": header(asked)}).differences
    assert found["on"] == asked and found["off"] == {"scheduling.max_num_batched_tokens": 512}


def test_sides_of_two_models_name_both() -> None:
    sides = {"here": TraceHeader("zoo/base"), "big": TraceHeader("llama-3.1-8b")}
    assert "here: zoo/base, big: llama-3.1-8b" in Provenance.of(sides).caption


def test_a_measured_run_keeps_what_was_asked_through_both_resolutions() -> None:
    def built(layout: str) -> TraceHeader:
        config = EngineConfig(dtype="float32", device="cpu").with_values({"memory.layout": layout})
        engine = build_engine(load_model("zoo/draft", config, progress=False))
        engine.close()
        return engine.trace.header

    sides = {layout: built(layout) for layout in ("contiguous", "paged")}
    assert sides["contiguous"].asked["memory.copy_on_write"] is True
    assert sides["paged"].asked["kernels.backend"] == "auto"
    assert Provenance.of(sides).differences == {
        layout: {"memory.layout": layout} for layout in sides
    }
