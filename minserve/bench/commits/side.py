"""One checkout's process: runs a case per command, and returns the CPU time that took.

    PYTHONPATH=CHECKOUT python -P side.py CHECKOUT

The same file serves every checkout, so it uses only public names of minserve, and looks for the few
that have moved. Commands are JSON lines on stdin, answers JSON lines on stdout; the first answer
says that it is ready. Between commands it blocks in a read and uses no CPU time.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Tokens = list[list[int]]
Case = Callable[[float], tuple[float, int, Tokens]]
"""A share of the usual work -> CPU seconds, units of work (steps or tokens), each
request's tokens."""

MARK = "minserve-bench-commits: "
"""Begins each line of stdout that is an answer."""
WARM_STEPS = 2
"""Steps that compute the prompts, before decoding is timed."""


def find(name: str, *modules: str) -> Any:
    """The object with this name in the first of these modules that exists and has it."""
    for module in modules:
        try:
            return getattr(importlib.import_module(f"minserve.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"this checkout has no {name} in {', '.join(modules)}")


def config_with(**values: Any) -> Any:
    """An EngineConfig on one CPU thread, in float32; dots in names are written __."""
    from minserve import EngineConfig

    dotted = {name.replace("__", "."): value for name, value in values.items()}
    common = {"device": "cpu", "dtype": "float32", "kernels.num_threads": 1}
    return EngineConfig().with_values(common | dotted)


def prompt(number: int, length: int) -> list[int]:
    """Token ids of a made-up prompt; odd numbers share their first 32."""
    own = [(53 * index + 101 * number) % 4000 + 20 for index in range(length)]
    shared = [(37 * index + 11) % 4000 + 20 for index in range(32)]
    return ((shared if number % 2 else []) + own)[:length]


def virtual_case(**values: Any) -> Case:
    """Scheduler, pages and bookkeeping without a model: 64 requests at once, CPU per step."""
    from minserve import SamplingParams

    spec = find("load_model", "loading", "build")("zoo/draft", config_with(), progress=False)
    spec = spec.config.model
    block_bytes = 16 * spec.kv_bytes_per_token(2)
    for name in ("memory__kv_bytes", "memory__host_bytes"):  # given in pages
        if name in values:
            values[name] *= block_bytes
    limits = {"scheduling__max_num_seqs": 64, "scheduling__max_num_batched_tokens": 512}
    config = config_with(memory__block_size=16, **(limits | values))
    device = find("DEVICES", "hardware")["A100 80GB SXM"]
    cost = find("CostModel", "virtual")(device, efficiency=0.5, overhead_s=0.001)
    build = find("build_virtual_engine", "build", "virtual")

    def run(work: float) -> tuple[float, int, Tokens]:
        engine, requests = build(spec, config, cost, "zoo/draft"), []
        for number in range(max(4, int(200 * work))):
            length, count = 10 + (31 * number) % 200, 1 + (17 * number) % 120
            params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
            requests += engine.add(f"v{number}", prompt(number, length), params)
        spent, steps = step_all(engine)
        return spent, steps, [list(request.output_token_ids) for request in requests]

    return run


def decode_case(model: str, rows: int, tokens: int, **values: Any) -> Case:
    """`rows` requests that decode together on a real engine: CPU per step."""
    from minserve import LLM, SamplingParams

    config = config_with(
        scheduling__max_num_seqs=rows, scheduling__max_num_batched_tokens=16 * rows, **values
    )
    engine = LLM(model, config, progress=False).engine

    def run(work: float) -> tuple[float, int, Tokens]:
        count = WARM_STEPS + max(2, int(tokens * work))
        params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
        requests: list[Any] = []
        for number in range(rows):
            requests += engine.add(f"r{number}", prompt(2 * number, 16), params)
        for _ in range(WARM_STEPS):
            engine.step()
        spent, steps = step_all(engine)
        found = [list(request.output_token_ids) for request in requests]
        for request in requests:
            engine.forget(request)
        return spent, steps, found

    return run


def generate_case(model: str, prompts: int, tokens: int) -> Case:
    """`LLM.generate` with short texts, including the work around the engine: CPU per token."""
    from minserve import LLM, SamplingParams

    llm = LLM(model, config_with(), progress=False)
    texts = [f"def function_{number}(value):\n" for number in range(prompts)]
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)

    def run(work: float) -> tuple[float, int, Tokens]:
        calls, found = max(1, int(8 * work)), []
        start_s = time.process_time()
        for _ in range(calls):
            outputs = llm.generate(texts, params, progress=False)
            found += [list(output.token_ids) for output in outputs]
        return time.process_time() - start_s, calls * prompts * tokens, found

    return run


def step_all(engine: Any) -> tuple[float, int]:
    """Step until nothing is left: CPU seconds, and the number of steps."""
    steps = 0
    start_s = time.process_time()
    while engine.has_work:
        engine.step()
        steps += 1
    return time.process_time() - start_s, steps


CASES: dict[str, Callable[[], Case]] = {
    "virtual, fcfs": lambda: virtual_case(memory__kv_bytes=400),
    "virtual, mlfq, swap, radix": lambda: virtual_case(
        memory__kv_bytes=400,
        memory__host_bytes=200,
        memory__prefix_cache="radix",
        scheduling__order="mlfq",
        scheduling__preemption="swap",
    ),
    "decode, draft, 16 rows, torch": lambda: decode_case(
        "zoo/draft", 16, 128, kernels__backend="torch"
    ),
    "decode, base, 1 row, native": lambda: decode_case(
        "zoo/base", 1, 128, kernels__backend="native"
    ),
    "generate, draft, 32 prompts": lambda: generate_case("zoo/draft", 32, 8),
}


def answer(ready: dict[str, Case], name: str, work: float, tokens: bool) -> dict[str, Any]:
    """Run a case once; with `tokens`, return each request's tokens."""
    if name not in ready:
        ready[name] = CASES[name]()
    gc.collect()
    cpu_s, units, found = ready[name](work)
    return {"cpu_s": cpu_s, "units": units, **({"tokens": found} if tokens else {})}


def tell(values: dict[str, Any]) -> None:
    """Write one answer, on a line of its own also where the checkout printed half a line."""
    print(f"\n{MARK}{json.dumps(values)}", flush=True)


def main(argv: Sequence[str]) -> int:
    """Answer commands until stdin ends."""
    import minserve

    here = Path(minserve.__file__).parent.parent
    if here != Path(argv[0]).resolve():
        raise ImportError(f"minserve was imported from {here}, not from {argv[0]}")
    ready: dict[str, Case] = {}
    tell({"cases": list(CASES)})
    for line in sys.stdin:
        try:
            told = answer(ready, **json.loads(line))
        except Exception as error:  # a case that this checkout cannot run
            told = {"error": f"{type(error).__name__}: {error}"}
        tell(told)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
