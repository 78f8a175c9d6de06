"""Every part of the suite runs at toy sizes, so that it has not rotted when a card is at hand."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minserve.bench.gpu import command, report
from minserve.bench.gpu.parts import PARTS, Part
from minserve.bench.gpu.record import load
from minserve.bench.gpu.recorded import NotRecordedError, chapter_trace, step_cost
from minserve.bench.gpu.suite.throughput import KV_BYTES
from minserve.bench.workloads.shapes import SHAPES
from minserve.build import build_virtual_engine
from minserve.clock import WallClock
from minserve.config import EngineConfig

ROOT = Path(__file__).resolve().parents[3]
BORROWED = ("hypothesis", "pandas", "plotly", "ipywidgets", "anywidget", "fastapi", "jupyterlab")
"""What a GPU machine need not have."""


def arguments(folder: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--dry-run", "--out", str(folder), "--commit", "abc", *words])


def values(data: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of a JSON tree."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield key, value
            yield from values(value)
    elif isinstance(data, list):
        for each in data:
            yield from values(each)


def check_file(path: Path) -> dict[str, Any]:
    """What holds for every part's file."""
    data = load(path)
    assert data is not None, path
    assert data["status"] == "done", data.get("error")
    assert data["rows"] or data["not_run"]
    assert data["dry_run"] and data["commit"] == "abc"
    assert data["device"]["name"] and data["seconds"] > 0
    assert {"python", "torch", "transformers"} <= set(data["versions"])
    assert data["settings"]["limit_s"] == PARTS[path.stem].limit_s
    for key, value in values(data):
        if isinstance(value, str):
            assert not re.search(r"(?<![\w.])/\w+/", value), f"{key} names a path: {value}"
        if isinstance(value, dict) and "share" in value:
            assert value["of"] and value["denominator"] > 0 and value["unit"], key
        # A percentage is a share with a name, never a bare number.
        assert not re.search(r"percent|_pct|^mbu$|^mfu$|utili[sz]ation", key) or key.startswith(
            ("memory.", "kernels.", "scheduling.")
        ), key
    return data


@pytest.mark.slow
def test_every_part_runs_at_toy_sizes(tmp_path: Path) -> None:
    recorded = ROOT / "labs" / "recorded"
    before = sorted(recorded.rglob("*"))

    def start(part: Part, folder: Path, args: argparse.Namespace, limit_s: float) -> int:
        # Interpreted kernels need a process in which Triton starts as an interpreter.
        if part.name == "kernels":
            return command.launch(part, folder, args, 120.0)
        return command.run_part(part, folder, args, WallClock())

    args = arguments(tmp_path)
    assert command.run_parts(list(PARTS.values()), tmp_path, args, WallClock(), start) == []
    found = {name: check_file(tmp_path / f"{name}.json") for name in PARTS}
    assert sorted(recorded.rglob("*")) == before, "a dry run records nothing"

    check_kernels(found["kernels"])
    check_throughput(found["throughput"])
    check_ladder(found["ladder"])
    check_recordings(tmp_path, found)
    assert [row["name"] for row in found["stream"]["rows"]] == [
        "llama-2-7b", "qwen3-0.6b", "llama-3.1-8b",
    ]  # fmt: skip
    assert len(found["prefill"]["rows"]) == 2
    printed = report.tables(tmp_path)
    assert "not yet recorded" not in printed
    for name, data in found.items():
        assert PARTS[name].title in printed
        for row in data["rows"]:
            assert str(row["name"]) in printed
    assert printed.count("DRY RUN") == len(PARTS)


def check_kernels(data: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in data["rows"]}
    wanted = {"rms norm", "add, rms norm", "rotary and store", "store keys and values",
              "silu and multiply", "gelu and multiply", "attention, decode", "attention, prefill",
              "rms norm of some rows", "sampling, greedy", "pytest -m gpu"}  # fmt: skip
    assert wanted <= set(rows)
    decode = rows["attention, decode"]
    assert {"torch sdpa, grouped", "torch sdpa, heads as rows", "torch flex_attention"} <= set(
        decode["sides"]
    )
    assert not decode["sides_lost"]
    assert rows["attention, prefill"]["matrix"]["of"].endswith("matrix rate measured in this run")
    if not any("stand in for the kernels" in note for note in data["notes"]):
        assert "minserve, not split" in decode["sides"]
        assert rows["sampling, top-p 0.9"]["best_peer"] == "torch operators"
    assert any("test_triton_gpu.py" in text for text in data["not_run"])


def check_throughput(data: dict[str, Any]) -> None:
    ample, tight, *peers = data["rows"]
    assert (ample["budget"], tight["budget"]) == tuple(KV_BYTES)
    assert ample["preemptions"] == 0 < tight["preemptions"]
    assert len(ample["output_tokens_per_s"]["values"]) == 3, "twice before the peers, once after"
    modes = ["continuous batching", "generate"]
    # On a CPU transformers asks psutil how much memory there is for its pages.
    counted = importlib.util.find_spec("psutil") is not None
    assert [row["mode"] for row in peers] == (modes if counted else modes[1:])
    for row in peers:
        assert row["settings"]["attention"] and row["measured"] and row["minserve_is_times"] > 0


def check_ladder(data: dict[str, Any]) -> None:
    assert any("PARTS=tune" in text for text in data["not_run"])
    by_workload: dict[str, list[dict[str, Any]]] = {}
    for row in data["rows"]:
        by_workload.setdefault(row["workload"], []).append(row)
    assert len(by_workload) == 2
    for rows in by_workload.values():
        names = [row["name"] for row in rows]
        assert names == [
            "torch operators", "+ fused kernels", "+ split contexts", "+ CUDA graphs", "+ overlap",
        ]  # fmt: skip
        assert rows[-1]["settings"]["kernels.cuda_graphs"]
        assert rows[-1]["settings"]["scheduling.async_scheduling"]
        assert rows[0]["over_the_rung_before"] is None
        assert all(row["over_the_rung_before"]["median"] > 0 for row in rows[1:])


def check_recordings(folder: Path, found: dict[str, dict[str, Any]]) -> None:
    """A chapter and the virtual clock read them back."""
    for row in found["chapters"]["rows"]:
        for side in row["sides"]:
            trace = chapter_trace(folder, row["name"], side)
            assert trace.header.provenance == "recorded"
            assert trace.header.versions["commit"] == "abc"
            assert trace.totals.sampled_tokens == 12 and len(trace.steps) == trace.totals.steps
        assert row["same_tokens"]
    checked = {(row["name"], row["quantity"]) for row in found["virtual_clock"]["rows"]}
    assert ("nano-vllm, tight KV", "output tokens/s") in checked
    assert ("qwen3-0.6b, one request", "tpot_s") in checked
    assert ("llama-3.1-8b, held-out traffic", "output_throughput") in checked
    for shape in ("qwen3-0.6b", "llama-3.1-8b"):
        cost = step_cost(folder, shape)
        assert cost.dtype == "float32"
        build_virtual_engine(SHAPES["trial"].spec(), EngineConfig(), cost)
    with pytest.raises(NotRecordedError, match="not yet recorded: `make gpu PARTS=virtual_clock`"):
        step_cost(folder, "llama-2-7b")
    with pytest.raises(NotRecordedError, match="not yet recorded: `make gpu PARTS=chapters`"):
        chapter_trace(folder, "46", "no such side")


def test_the_suite_needs_the_engines_own_packages_only() -> None:
    names = [f"suite.{name}" for name in PARTS]
    names += ["command", "report", "recorded", "cases.kernel_tests", "cases.transformers_peer"]
    program = (
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({BORROWED!r}))\n"
        f"for name in {names!r}: importlib.import_module('minserve.bench.gpu.' + name)\n"
        "print('transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False", "transformers is imported where it is raced"


def test_what_is_recorded_stays_readable() -> None:
    """Files that a GPU left in the repository, where there are any."""
    folder = ROOT / "labs" / "recorded" / "gpu"
    for path in folder.glob("*.json"):
        if path.stem in PARTS:
            data = load(path)
            assert data is not None and not data["dry_run"], path
            assert report.table(path.stem, data)
            assert len(json.dumps(data)) < 200_000, f"{path.name} is no small file"
