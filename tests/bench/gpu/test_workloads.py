"""The suite's workloads are what they are named after."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minserve.bench.gpu.cases.chapter_runs import CHAPTERS, ChapterRun
from minserve.bench.gpu.cases.kernel_cases import REAL
from minserve.bench.gpu.cases.nano_vllm import nano_vllm
from minserve.bench.gpu.engines import Bench
from minserve.bench.gpu.record import Record
from minserve.bench.gpu.setting import Setting
from minserve.bench.gpu.suite.kernels import all_cases
from minserve.bench.gpu.timing import Budget
from minserve.clock import WallClock
from minserve.config import EngineConfig
from minserve.kernels import TorchOps
from minserve.loading import load_model

LABS = Path(__file__).resolve().parents[3] / "labs"


def test_the_nano_vllm_workload_is_nano_vllms() -> None:
    workload = nano_vllm()
    assert len(workload.items) == 256 and workload.seed == 0
    assert (workload.num_input_tokens, workload.num_output_tokens) == (142_827, 133_966)
    lengths = [len(item.prompt_token_ids) for item in workload.items]
    lengths += [item.max_tokens for item in workload.items]
    assert min(lengths) >= 100 and max(lengths) <= 1024
    assert max(max(item.prompt_token_ids) for item in workload.items) <= 10_000


def cells(chapter: str) -> list[str]:
    (path,) = LABS.glob(f"{chapter}_*.ipynb")
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def comparison(chapter: str) -> tuple[EngineConfig, dict[str, Any], Any, tuple[str, str]]:
    """What the chapter's first `Compare` is given: base, switch, workload, names."""
    sources = cells(chapter)
    known: dict[str, Any] = {}
    exec(sources[0], known)
    text = next(source for source in sources if "compare = Compare(" in source)
    call = next(
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "compare"
    )
    assert isinstance(call, ast.Call)
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if chapter == "43a":
        known["WATCHED"] = {}  # What the trace keeps changes no run.
    # On this machine chapter 46 flips to its own fused operators.
    known["FUSED"] = "triton"
    found = (eval(given[name], known) for name in ("switch", "workload", "names"))
    return (eval(ast.unparse(call.args[0]), known), *found)


@pytest.mark.parametrize("run", CHAPTERS, ids=lambda run: run.chapter)
def test_a_recorded_chapter_runs_what_the_chapter_runs(run: ChapterRun) -> None:
    pytest.importorskip("plotly", reason="chapters import the panels")
    base, switch, workload, names = comparison(run.chapter)
    assert run.base == base
    assert dict(run.switch) == switch
    assert run.workload().requests == workload.requests
    assert run.names == names


def test_every_round_of_returning_sessions_starts_with_an_empty_cache(tmp_path: Path) -> None:
    (chapter,) = (run for run in CHAPTERS if run.chapter == "43b")
    cpu, clock = torch.device("cpu"), WallClock()
    record = Record(tmp_path / "chapters.json", {})
    setting = Setting(cpu, True, clock, Budget(60.0, clock), record, tmp_path)
    traffic, found = chapter.workload(), {}
    for name, switch in zip(chapter.names, ({}, chapter.switch), strict=True):
        with Bench(setting, load_model("zoo/base", chapter.base.with_values(switch))) as bench:
            rounds = [bench.play(traffic)[0].totals for _ in range(2)]
        found[name] = [(each.prefill_tokens, each.loaded_tokens) for each in rounds]
    # What the chapter says of both turns.
    assert found == {"device alone": [(7872, 0)] * 2, "with host": [(4032, 3840)] * 2}


def test_real_cases_are_counted_without_a_device() -> None:
    found = all_cases(TorchOps(), REAL, torch.device("meta"), torch.bfloat16)
    cases = {(case.name, case.shape): case for case in found}
    assert len(cases) == len(found), "no two rows of the table look alike"
    decode = cases["attention, decode", "64 x 4096 tokens"]
    cached = 2 * 64 * 4096 * REAL.kv_heads * REAL.head_dim * 2
    assert cached < decode.moved < 1.01 * cached and decode.flops == 0
    prefill = cases["attention, prefill", "1 x 8192 tokens"]
    assert prefill.flops == 4 * REAL.heads * REAL.head_dim * 8192 * 8193 // 2
    product = cases["gate-up product", f"{REAL.rows} x {REAL.hidden} x {2 * REAL.inner}"]
    assert product.flops == 4 * REAL.rows * REAL.hidden * REAL.inner
    assert all(case.moved > 0 for case in cases.values())
