"""What HTTP costs: output tokens a second through a server, streamed or not, beside the same engine
in this process.

The server is `minserve serve` in a process of its own, so it shares no interpreter with its client;
both share the machine's cores, as they would on one machine. The sides take turns, and no prompt
comes twice, so no prefix is found in a cache.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import IO

from minserve.bench.http.client import PlayError
from minserve.bench.http.player import play
from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.bench.workloads import conversations, length_draws
from minserve.bench.workloads.traffic import Traffic, traffic
from minserve.clock import WallClock
from minserve.config import EngineConfig
from minserve.hardware import describe_machine
from minserve.llm import LLM

WHOLE = {"stream": False, "stream_options": None}
"""Fields of a request whose answer comes in one piece."""


@dataclass(frozen=True)
class HttpCost:
    """Rates of each side ("offline", "http", "streamed"), round by round."""

    device: str
    tokens_per_s: Mapping[str, list[float]]
    client_load: Mapping[str, list[float]]
    """Share of one core that the client used; 0 where there is none."""

    def share(self, side: str) -> Spread:
        """Output tokens a second, of the offline side's in the same round."""
        return pairwise_ratio(self.tokens_per_s[side], self.tokens_per_s["offline"])


def http_cost(
    model: str,
    *,
    dtype: str = "bfloat16",
    num_prompts: int = 48,
    input_len: int = 128,
    output_len: int = 64,
    max_num_seqs: int = 32,
    rounds: int = 5,
    progress: bool = True,
) -> HttpCost:
    """Run `num_prompts` requests that come at once, `rounds` times on each side.

    Raises PlayError if the server does not start or a request fails.
    """
    flags = {"dtype": dtype, "max-num-seqs": max_num_seqs, "max-model-len": input_len + output_len}
    config = EngineConfig(dtype=dtype).with_values(
        {
            "scheduling.max_num_seqs": max_num_seqs,
            "scheduling.max_model_len": input_len + output_len,
        }
    )
    jobs = conversations.independent(length_draws.fixed(input_len), length_draws.fixed(output_len))
    seeds = count()

    def fresh() -> Traffic:
        return replace(traffic(jobs, num_prompts, 1.0, seed=next(seeds)), rate_per_s=None)

    with _served(model, flags) as url, LLM(model, config, progress=False) as llm:
        sides: dict[str, Callable[[], tuple[float, float]]] = {
            "offline": lambda: _offline(llm, fresh()),
            "http": lambda: _through(url, fresh(), WHOLE),
            "streamed": lambda: _through(url, fresh(), {}),
        }
        found = interleave(sides, rounds, warmup=sides, progress=progress)
        return HttpCost(
            device=describe_machine().processor(llm.config.device),
            tokens_per_s={name: [rate for rate, _ in runs] for name, runs in found.items()},
            client_load={name: [load for _, load in runs] for name, runs in found.items()},
        )


def _offline(llm: LLM, sent: Traffic) -> tuple[float, float]:
    clock = WallClock()
    start = clock.now()
    outputs = llm.generate(
        [list(each.prompt_token_ids) for each in sent.requests],
        [each.params for each in sent.requests],
        progress=False,
    )
    return sum(len(each.token_ids) for each in outputs) / (clock.now() - start), 0.0


def _through(url: str, sent: Traffic, fields: Mapping[str, object]) -> tuple[float, float]:
    done = play(url, sent, extra_body=fields, progress=False)
    if len(done.of("completed")) != len(sent.requests):
        bad = next(each for each in done.records if each.status != "completed")
        raise PlayError(f"request {bad.number} ended as {bad.status}: {bad.error}")
    tokens = sum(each.num_output_tokens for each in done.records)
    return tokens / done.duration_s, done.client_load


@contextlib.contextmanager
def _served(model: str, flags: Mapping[str, object]) -> Iterator[str]:
    """The address of a server that ends with the block."""
    command = [sys.executable, "-m", "minserve", "serve", model, "--port", "0"]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        try:
            yield _address(process.stderr)
        finally:
            process.terminate()


def _address(said: IO[str]) -> str:
    lines = []
    for line in said:
        lines.append(line.strip())
        if " at http://" in line:
            # What else it says must not fill the pipe.
            threading.Thread(target=said.read, daemon=True).start()
            return line.split(" at ")[1].split("/v1")[0]
    raise PlayError("the server did not start: " + " ".join(lines[-3:]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench http`."""
    add = partial(parser.add_argument, type=int)
    parser.add_argument("--model", default="zoo/base", help="default: %(default)s")
    parser.add_argument("--dtype", default="bfloat16", help="default: %(default)s")
    add("--num-prompts", default=48, help="requests, all at once (default: %(default)s)")
    add("--input-len", default=128, help="prompt tokens of each (default: %(default)s)")
    add("--output-len", default=64, help="new tokens of each (default: %(default)s)")
    add("--max-num-seqs", default=32, help="in the batch at once (default: %(default)s)")
    add("--repeats", default=5, help="rounds (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    cost = http_cost(
        args.model,
        dtype=args.dtype,
        num_prompts=args.num_prompts,
        input_len=args.input_len,
        output_len=args.output_len,
        max_num_seqs=args.max_num_seqs,
        rounds=args.repeats,
    )
    print(
        f"{args.model}, {args.dtype}, {args.num_prompts} requests of {args.input_len} + "
        f"{args.output_len} tokens, on {cost.device}; median (spread) of {args.repeats} "
        "interleaved rounds"
    )
    for name, rates in cost.tokens_per_s.items():
        told = f"{name:9} {Spread.of(rates)} output tokens/s"
        if name != "offline":
            load = Spread.of(cost.client_load[name])
            told += f", {cost.share(name)} of offline; client {load.median:.0%} of a core"
        print(told)
    return 0
