"""The cost of compiling, and after how many tokens that time is saved again.

The cold side is a separate process with an empty cache directory; then this process compiles again
and finds torch's cache on disk. The time of a step is `forward_s` of decode steps: from the batch's
tensors to the logits, without scheduling and sampling. Sides take turns within a round, and ratios
are taken within rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from minserve.bench.common import Race, emit, frame, print_table
from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.config import EngineConfig
from minserve.kernels.select import why_not_native
from minserve.llm import LLM
from minserve.loading import find_model
from minserve.request import SamplingParams

SIDES: dict[str, dict[str, Any]] = {
    "eager": {"kernels.backend": "torch"},
    "compiled": {"kernels.compile": True},
    "native": {"kernels.backend": "native"},
}
"""Side -> its switches. Native operators are for comparison: a CPU runs them by default."""
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def break_even_tokens(
    compile_s: float, eager_step_s: float, compiled_step_s: float, rows: int
) -> float | None:
    """Tokens after which a compilation has paid for itself, in steps of `rows` rows with one token
    each; None if the compiled step is not faster, so that no number of tokens is enough."""
    saved_per_token_s = (eager_step_s - compiled_step_s) / rows
    return compile_s / saved_per_token_s if saved_per_token_s > 0 else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench compile`."""
    parser.add_argument("--model", default="zoo/base", help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads of every side (default: torch's)")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 8, 32], help="requests at once (1 8 32)"
    )
    parser.add_argument("--tokens", type=int, default=32, help="steps of a run (default: 32)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the result there, not to stdout")
    parser.add_argument("--no-progress", action="store_true", help="no progress bars")
    parser.add_argument(
        "--once",
        action="store_true",
        help="only compile, with torch's cache as it is, and say what it took",
    )
    # Defaults of fields that the report's frame reads.
    parser.set_defaults(device="cpu", seed=0)


def run(args: argparse.Namespace) -> int:
    """Measure and report: a table on stderr, JSON on stdout or in a file. Returns 1 if a
    side's tokens differ."""
    if args.once:
        with LLM(args.model, _config(args, "compiled"), progress=False) as llm:
            print(json.dumps(_compile(llm, args)))
        return 0
    with tempfile.TemporaryDirectory() as cache:
        before = os.environ.get(_CACHE)
        os.environ[_CACHE] = cache
        try:
            cold = _in_a_new_process(args)
            result = _measured(args, cold)
        finally:
            os.environ.pop(_CACHE)
            if before is not None:
                os.environ[_CACHE] = before
    emit(result, args.json)
    return int(not result["same_tokens"])


def _config(args: argparse.Namespace, side: str) -> EngineConfig:
    return EngineConfig(dtype=args.dtype, device="cpu").with_values(
        {"kernels.num_threads": args.threads, "scheduling.max_num_seqs": max(args.rows)}
        | SIDES[side]
    )


def _in_a_new_process(args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "minserve", "bench", "compile", "--once", "--model",
               args.model, "--dtype", args.dtype]  # fmt: skip
    command += ["--rows", *(str(rows) for rows in args.rows)]
    command += ["--threads", str(args.threads)] if args.threads else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"compiling in a new process failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _compile(llm: LLM, args: argparse.Namespace) -> dict[str, Any]:
    """Run every kind of step once; returns what was compiled."""
    seconds, graphs, cached = 0.0, 0, 0
    for rows in sorted({1, *args.rows}):
        _decode(llm, rows, 2)
        totals = llm.trace.totals
        seconds += totals.compile_s
        graphs += totals.compiled_graphs
        cached += totals.cached_graphs
    return {"compile_s": seconds, "graphs": graphs, "from_cache": cached}


def _decode(llm: LLM, rows: int, tokens: int) -> tuple[float, list[list[int]]]:
    """Median `forward_s` of a run's decode steps, and the tokens."""
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    vocab = llm.config.model.vocab_size
    prompts = [[(7 * row + 3 * at) % vocab for at in range(64)] for row in range(rows)]
    outputs = llm.generate(prompts, params, progress=False)
    steps = [step for step in llm.trace.steps if not step.num_prefill_tokens]
    return median(step.stages.forward_s for step in steps), [
        list(output.token_ids) for output in outputs
    ]


def _measured(args: argparse.Namespace, cold: Mapping[str, Any]) -> dict[str, Any]:
    names = [name for name in SIDES if name != "native" or why_not_native() is None]
    sides = {name: LLM(args.model, _config(args, name), progress=False) for name in names}
    warm = _compile(sides["compiled"], args)
    compiled = {"cold": dict(cold), "warm": warm}
    table: list[list[str]] = []
    steps: list[dict[str, Any]] = []
    same = True
    for rows in args.rows:
        calls = {name: partial(_decode, llm, rows, args.tokens) for name, llm in sides.items()}
        runs = interleave(calls, args.repeats, warmup=calls, progress=not args.no_progress)
        seconds = {name: [found for found, _ in each] for name, each in runs.items()}
        same &= all(tokens == runs["eager"][0][1] for each in runs.values() for _, tokens in each)
        ratio = pairwise_ratio(seconds["compiled"], seconds["eager"])
        eager, faster = median(seconds["eager"]), median(seconds["compiled"])
        even = {
            kind: break_even_tokens(each["compile_s"], eager, faster, rows)
            for kind, each in compiled.items()
        }
        steps.append(
            {
                "rows": rows,
                "step_s": {name: vars(Spread.of(each)) for name, each in seconds.items()},
                "compiled_over_eager": vars(ratio),
                "break_even_tokens": even,
            }
        )
        table.append(
            [f"{rows}", *(f"{1e3 * median(each):.2f}" for each in seconds.values()), str(ratio)]
        )
        table[-1].append("never" if even["cold"] is None else f"{even['cold']:,.0f}")
    head = ["rows", *(f"{name} ms" for name in names), "compiled over eager", "even after tokens"]
    print_table(head, table)
    for llm in sides.values():
        llm.close()
    race = Race(args, find_model(args.model), args.model, False)
    return frame(
        race,
        "compile",
        commit=_commit(),
        compilation=compiled,
        context=64,
        tokens=args.tokens,
        repeats=args.repeats,
        steps=steps,
        same_tokens=same,
        threads=torch.get_num_threads(),
    )


def _commit() -> str | None:
    """The checkout's commit; None outside of a checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None
