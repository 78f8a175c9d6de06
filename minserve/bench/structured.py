"""What a grammar costs: seconds per step with and without one, at two batch sizes.

All sides draw the same number of tokens from the same prompts, in interleaved rounds: free, bound
to a regular expression that allows any text, and bound to a JSON schema. A form is compiled in the
warm-up, before the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from minserve.bench.interleave import Spread, interleave
from minserve.clock import WallClock
from minserve.config import EngineConfig
from minserve.hardware import describe_machine
from minserve.llm import LLM
from minserve.request import SamplingParams, StructuredOutputs

PROMPT = "A list of the things on the table, as JSON: "
FORMS: Mapping[str, StructuredOutputs | None] = {
    "free": None,
    "regex": StructuredOutputs(regex="(.|\\n)*"),
    "schema": StructuredOutputs(
        json={
            "type": "array",
            "minItems": 10_000,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
                "required": ["name", "count"],
                "additionalProperties": False,
            },
        }
    ),
}


@dataclass(frozen=True)
class GrammarCost:
    """Seconds per step of each side, round by round."""

    device: str
    batch_size: int
    num_tokens: int
    seconds: dict[str, list[float]]
    """By side: "free", "regex", "schema"."""

    def extra(self, side: str) -> Spread:
        """Seconds that a step takes longer than one of the free side in the same round."""
        pairs = zip(self.seconds[side], self.seconds["free"], strict=True)
        return Spread.of([mine - free for mine, free in pairs])


def grammar_cost(
    model: str, *, batch_size: int = 1, num_tokens: int = 64, rounds: int = 10
) -> GrammarCost:
    """Time `num_tokens` steps of `batch_size` requests with each form and without. Raises
    ValueError if a side did not draw as many tokens."""
    with LLM(model, EngineConfig(), progress=False) as llm:
        sides = {
            name: partial(_seconds, llm, form, batch_size, num_tokens)
            for name, form in FORMS.items()
        }
        return GrammarCost(
            device=describe_machine().processor(llm.config.device),
            batch_size=batch_size,
            num_tokens=num_tokens,
            seconds=interleave(sides, rounds, warmup=sides, progress=False),
        )


def _seconds(llm: LLM, form: StructuredOutputs | None, batch_size: int, num_tokens: int) -> float:
    """Seconds per step of one run, its prefill included, which is the same for all sides."""
    # The end tokens are banned: every side draws the same number of tokens.
    ends = dict.fromkeys(llm.config.model.eos_token_ids, float("-inf"))
    params = SamplingParams(
        structured_outputs=form,
        temperature=0.0,
        max_tokens=num_tokens,
        logit_bias=ends,
    )
    clock = WallClock()
    start = clock.now()
    outputs = llm.generate([PROMPT] * batch_size, params, progress=False)
    elapsed_s = clock.now() - start
    drawn = {len(output.token_ids) for output in outputs}
    if drawn != {num_tokens}:
        raise ValueError(f"{sorted(drawn)} tokens were drawn instead of {num_tokens}")
    return elapsed_s / num_tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench structured`."""
    parser.add_argument("--model", default="zoo/base", help="default: %(default)s")
    parser.add_argument("--num-tokens", type=int, default=64, help="per request (default: 64)")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 16], help="requests (default: 1 16)"
    )
    parser.add_argument("--repeats", type=int, default=10, help="rounds (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    for batch_size in args.batch_sizes:
        cost = grammar_cost(
            args.model,
            batch_size=batch_size,
            num_tokens=args.num_tokens,
            rounds=args.repeats,
        )
        print(
            f"{args.model}, batch of {batch_size}, {cost.num_tokens} tokens each, on "
            f"{cost.device}; median (spread) of {args.repeats} interleaved rounds"
        )
        for name, seconds in cost.seconds.items():
            ms = Spread.of([each * 1e3 for each in seconds])
            extra = cost.extra(name)
            more = f", {extra.median * 1e6:+.0f} us ({extra.min * 1e6:+.0f} to "
            more += f"{extra.max * 1e6:+.0f}) a step"
            print(f"{name:8} {ms} ms a step{more if name != 'free' else ''}")
    return 0
