"""Runs whose tokens and traces were written down once, and must not change when the code is moved.

Each touches many switches at once, in float64 and on a clock that stands still or is modelled, so
that every number of its trace is the same on any machine. `python tests/golden/runs.py` writes the
files again: only where a change of behaviour is meant, and said.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minserve.build import build_engine, build_virtual_engine
from minserve.clock import VirtualClock
from minserve.config import EngineConfig
from minserve.hardware import DEVICES
from minserve.loading import load_model
from minserve.request import Request, SamplingParams
from minserve.virtual import CostModel

FOLDER = Path(__file__).parent
COMMON = {
    "dtype": "float64",
    "device": "cpu",
    "kernels.backend": "torch",
    "scheduling.max_num_seqs": 4,
    "scheduling.max_num_batched_tokens": 24,
    "scheduling.max_model_len": 160,
    "memory.check_integrity": True,
    "trace.per_request": True,
    "trace.pages": True,
}
PAGE = 8
PROMPT_LENGTHS = (31, 3, 17, 50, 9, 40, 12, 25, 33)
OUTPUTS = (20, 31, 6, 15, 30, 4, 28, 10, 12)
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.9, "seed": 11},
    {"temperature": 1.1, "top_k": 40, "seed": 5, "n": 2},
    {"temperature": 0.0, "logprobs": 3, "prompt_logprobs": 2},
    {"temperature": 0.7, "repetition_penalty": 1.2, "seed": 3},
    {"temperature": 0.0, "logit_bias": {7: 2.0}, "stop_token_ids": [199]},
)
RUNS: dict[str, dict[str, Any]] = {
    "tight": {"memory.watermark": 0.0},
    "swap": {
        "memory.prefix_cache": "radix",
        "memory.host_pages": 12,
        "memory.resume": "load",
        "scheduling.preemption": "swap",
        "scheduling.order": "mlfq",
        "scheduling.mlfq_quantum": 2,
        "scheduling.prefill": "decode_first",
        "scheduling.max_num_prefill_tokens": 16,
    },
    "overlap": {
        "memory.prefix_cache": "hash",
        "scheduling.async_scheduling": True,
        "scheduling.order": "lpm",
        "scheduling.victim": "least_computed",
        "kernels.padding": "power_of_two",
    },
    "static": {
        "scheduling.policy": "static",
        "scheduling.order": "sjf",
        "kernels.padding": "batch",
        "memory.layout": "contiguous",
        "memory.reservation": "power_of_two",
        "memory.pages": 36,
    },
    "uncached": {
        "memory.kv_cache": False,
        "scheduling.max_num_batched_tokens": 160,
    },
    "graphs": {"kernels.cuda_graphs": True, "scheduling.order": "priority"},
}


def _prompt(number: int, length: int) -> list[int]:
    shared = [(37 * place + 11) % 4000 + 20 for place in range(20)]
    own = [(53 * place + 101 * number) % 4000 + 20 for place in range(length)]
    return ((shared if number % 2 else []) + own)[:length]


def real_run(values: dict[str, Any]) -> tuple[list[Request], str]:
    """The zoo's draft model over a ragged workload with preemptions and an abort in the middle:
    its requests, and its trace as JSON."""
    values = COMMON | values
    pages, host = values.pop("memory.pages", 13), values.pop("memory.host_pages", 0)
    loaded = load_model("zoo/draft", EngineConfig().with_values(_checked(values)), progress=False)
    page_bytes = PAGE * loaded.config.model.kv_bytes_per_token(8)
    values |= {
        "memory.block_size": PAGE,
        "memory.kv_bytes": pages * page_bytes,
        "memory.host_bytes": host * page_bytes,
    }
    loaded = load_model("zoo/draft", EngineConfig().with_values(values), progress=False)
    engine = build_engine(loaded, VirtualClock())
    requests: list[Request] = []
    for number, (length, count) in enumerate(zip(PROMPT_LENGTHS, OUTPUTS, strict=True)):
        params = SamplingParams(**(SAMPLING[number % len(SAMPLING)] | {"max_tokens": count}))
        prompt = _prompt(number, length)
        requests += engine.add(f"r{number}", prompt, params, priority=number % 3)
        if number % 4 == 3:
            for _ in range(5):
                engine.step()
    engine.abort("r4")
    while engine.has_work:
        engine.step()
    text = engine.trace.to_json()
    engine.close()
    return requests, text


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with which the model alone can be read, to learn what a page of it takes."""
    return {name: values[name] for name in ("dtype", "device", "kernels.backend")}


def modelled_run() -> tuple[list[Request], str]:
    """A virtual A100 under load, with swapping, on modelled time."""
    loaded = load_model(
        "zoo/draft", EngineConfig(dtype="float32", device="cpu"), progress=False
    ).config.model
    page_bytes = 16 * loaded.kv_bytes_per_token(2)
    config = EngineConfig().with_values(
        {
            "scheduling.max_num_seqs": 8,
            "scheduling.max_num_batched_tokens": 64,
            "scheduling.preemption": "swap",
            "memory.kv_bytes": 40 * page_bytes,
            "memory.host_bytes": 20 * page_bytes,
        }
    )
    cost = CostModel(DEVICES["A100 80GB SXM"], efficiency=0.5, overhead_s=0.001)
    engine = build_virtual_engine(loaded, config, cost, "zoo/draft")
    requests: list[Request] = []
    for number in range(60):
        length, count = 10 + (31 * number) % 90, 1 + (17 * number) % 70
        params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
        requests += engine.add(f"v{number}", [5] * length, params, arrival_s=0.01 * number)
        for _ in range(number % 5):
            if engine.has_work:
                engine.step()
    while engine.has_work:
        if not engine.fast_forward():
            engine.step()
    return requests, engine.trace.to_json()


GOLDEN: dict[str, Callable[[], tuple[list[Request], str]]] = {
    **{name: lambda values=values: real_run(values) for name, values in RUNS.items()},
    "modelled": modelled_run,
}


def facts(requests: list[Request]) -> list[dict[str, Any]]:
    """What a run gave to each request."""
    return [
        {
            "request": f"{request.request_id}/{request.sample_index}",
            "tokens": request.output_token_ids,
            "finish_reason": request.finish_reason,
            "stop_reason": request.stop_reason,
            "num_preemptions": request.num_preemptions,
            "num_cached_tokens": request.num_cached_tokens,
            "ranks": [entry.rank for entry in request.logprobs],
        }
        for request in requests
    ]


def portable(text: str) -> dict[str, Any]:
    """A trace's JSON without what differs from day to day: versions, date, processor; and
    without the configuration, which gains fields."""
    data: dict[str, Any] = json.loads(text)
    data["header"] |= {"versions": {}, "date": "", "device": "", "notes": []}
    data["header"]["config"] = {}
    data["header"].pop("asked", None)
    return data


def recorded(name: str) -> dict[str, Any]:
    """What was written down of a run: `requests` and `trace`."""
    data: dict[str, Any] = json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))
    return data


def main() -> None:
    """Write all files again."""
    for name, run in GOLDEN.items():
        requests, text = run()
        data = {"requests": facts(requests), "trace": portable(text)}
        path = FOLDER / f"{name}.json.gz"
        # A fixed time stamp: the same run gives the same file.
        path.write_bytes(gzip.compress(json.dumps(data, separators=(",", ":")).encode(), mtime=0))
        steps = len(data["trace"]["steps"])
        preempted = data["trace"]["totals"]["preemptions"]
        print(f"{path.name}: {len(requests)} requests, {steps} steps, {preempted} preemptions")


if __name__ == "__main__":
    main()
