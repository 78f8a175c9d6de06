"""The Grafana dashboard asks for nothing that `/metrics` does not tell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_traces import make_trace

import minserve.server.metrics
from minserve.server.metrics import EngineMetrics
from minserve.server.metrics.names import COMMON_LABELS, METRICS, all_series

BOARD = json.loads(
    (Path(minserve.server.metrics.__file__).parent / "grafana.json").read_text(encoding="utf-8")
)
PANELS: list[dict[str, Any]] = BOARD["panels"]
NAME = re.compile(r"\b(?:vllm|minserve|process)[:_][a-z0-9_]+")


def expressions() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def process_series() -> set[str]:
    told = EngineMetrics(make_trace()).render().decode()
    return set(re.findall(r"^(process_\w+) ", told, re.M))


@pytest.mark.parametrize(("title", "text"), list(expressions()))
def test_every_name_in_an_expression_exists(title: str, text: str) -> None:
    names = NAME.findall(text)
    assert names, f"{title} asks for nothing"
    assert set(names) <= {*all_series(), *process_series()}


@pytest.mark.parametrize(("title", "text"), list(expressions()))
def test_labels_exist_and_brackets_are_closed(title: str, text: str) -> None:
    for opened, closed in ("()", "{}", "[]"):
        assert text.count(opened) == text.count(closed)
    for name, labels in re.findall(r"([\w:]+)\{([^}]*)\}", text):
        metric = next(m for m in METRICS.values() if name in m.series)
        asked = set(re.findall(r"(\w+)=~?\"", labels))
        assert asked <= {*COMMON_LABELS, *metric.labels}, title
    for label in re.findall(r"by \((\w+)\)", text):
        allowed = {name for metric in METRICS.values() for name in metric.labels}
        assert label in {"le", *allowed}, title


def test_counters_are_asked_for_rates_and_gauges_for_values() -> None:
    counters = {s for m in METRICS.values() if m.kind != "gauge" for s in m.series}
    for title, text in expressions():
        for name in NAME.findall(text):
            rated = re.search(rf"rate\({re.escape(name)}\b", text) is not None
            if not name.startswith("process_"):
                assert rated == (name in counters), title


def test_panels_have_their_own_numbers_and_places() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not taken & cells and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)


def test_every_metric_of_the_engine_is_shown_or_left_out_on_purpose() -> None:
    shown = {name for _, text in expressions() for name in NAME.findall(text)}
    unseen = {m.name for m in METRICS.values() if not shown & set(m.series)}
    assert unseen == {
        "minserve:cost", "minserve:engine_steps", "vllm:cache_config_info",
        "vllm:request_inference_time_seconds", "vllm:spec_decode_num_accepted_tokens_per_pos",
        "vllm:spec_decode_num_drafts",
    }  # fmt: skip
