"""Forward cost: the time of one token of a model compared with another's, each alone in the engine.

Times the stage `forward_s` of the engine's steps that compute exactly one token: from the batch's
tensors to the logits, including embedding, layers, final norm and head, without scheduling and
sampling. Models take turns within a round; a round's figure is the median over its steps, and
ratios are taken within rounds.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.config import EngineConfig
from minserve.hardware import describe_machine
from minserve.llm import LLM
from minserve.request import SamplingParams


def forward_cost(
    model: str | Path,
    against: str | Path,
    *,
    dtype: str = "float32",
    threads: int | None = None,
    context: int = 128,
    tokens: int = 64,
    rounds: int = 9,
) -> dict[str, Any]:
    """Forward seconds per token of `model` and of `against`, at batch 1, and the ratio of the
    second to the first. `threads`: for both; None keeps torch's setting."""
    config = EngineConfig(dtype=dtype).with_values(
        {
            "scheduling.max_num_seqs": 1,
            "scheduling.max_model_len": context + tokens + 1,
            "kernels.num_threads": threads,
        }
    )
    with (
        LLM(model, config, progress=False) as ours,
        LLM(against, config, progress=False) as theirs,
    ):
        calls = {
            "model": partial(_median_forward_s, ours, context, tokens),
            "against": partial(_median_forward_s, theirs, context, tokens),
        }
        times = interleave(calls, rounds, warmup=calls, progress=False)
        device = ours.config.device
    return {
        "device": describe_machine().processor(device),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "context": context,
        "tokens": tokens,
        "rounds": rounds,
        "model_us": _rounded(Spread.of([s * 1e6 for s in times["model"]]), 1),
        "against_us": _rounded(Spread.of([s * 1e6 for s in times["against"]]), 1),
        "times_cheaper": _rounded(pairwise_ratio(times["against"], times["model"]), 2),
    }


def _median_forward_s(llm: LLM, context: int, tokens: int) -> float:
    params = SamplingParams(max_tokens=tokens + 1, temperature=0.0, ignore_eos=True)
    vocab = llm.config.model.vocab_size
    llm.generate([[index % vocab for index in range(context)]], params, progress=False)
    return median(step.stages.forward_s for step in llm.trace.steps if step.num_tokens == 1)


def _rounded(spread: Spread, digits: int) -> dict[str, float]:
    return {
        "min": round(spread.min, digits),
        "median": round(spread.median, digits),
        "max": round(spread.max, digits),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench forward`."""
    parser.add_argument("--model", default="zoo/draft", help="default: %(default)s")
    parser.add_argument("--against", default="zoo/base", help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads of both (default: torch's)")
    parser.add_argument("--context", type=int, default=128, help="prompt tokens (default: 128)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    cost = forward_cost(
        args.model,
        args.against,
        dtype=args.dtype,
        threads=args.threads,
        context=args.context,
        rounds=args.repeats,
    )
    print(describe(args.model, args.against, cost))
    return 0


def describe(model: str, against: str, cost: dict[str, Any]) -> str:
    """The figures in a few lines."""

    def spread(name: str) -> str:
        return "{median} ({min} to {max})".format(**cost[name])

    return (
        f"forward pass of one token, head included, batch 1, {cost['dtype']}, "
        f"{cost['threads']} thread(s), after {cost['context']} tokens; median (spread) of "
        f"{cost['rounds']} interleaved rounds on {cost['device']}\n"
        f"{model}: {spread('model_us')} us\n"
        f"{against}: {spread('against_us')} us, {spread('times_cheaper')} times as much"
    )
