"""What it costs to verify a draft: a pass over its rows, beside a pass over one row.

Speculative decoding gains only where many rows of a request cost little more than one. Three kinds
of passes take turns, over the same cached context: the newest token alone, a chain of drafted
tokens after it, and a tree of as many. Where the operators run whole layers in one call
(`Ops.layer_stack`), the tree also runs operator by operator with attention in torch, which is what
a batch needs that such a call cannot take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from minserve.attention import PagedAttention
from minserve.batch import ForwardBatch
from minserve.bench.counts.launches import PAGE, make_batch
from minserve.bench.interleave import Spread, interleave, pairwise_ratio
from minserve.clock import WallClock
from minserve.config import EngineConfig
from minserve.draft import Draft
from minserve.hardware import describe_machine
from minserve.kernels import select_ops
from minserve.kernels.reference.ops import TorchOps
from minserve.loading import LoadedModel, load_model
from minserve.models import Decoder

Pass = Callable[[], object]


@dataclass(frozen=True)
class VerificationCost:
    """Seconds of each kind of pass, round by round."""

    device: str
    threads: int
    dtype: str
    rows: int
    context: int
    seconds: dict[str, list[float]]
    """By the name of the pass: "one row", "chain", "tree", "tree, by operator"."""

    def times(self, name: str) -> Spread:
        """How many times as long as a pass over one row."""
        return pairwise_ratio(self.seconds[name], self.seconds["one row"])


def verification_cost(
    model: str, *, dtype: str = "float32", rows: int = 8, context: int = 200, rounds: int = 15
) -> VerificationCost:
    """Time passes of `model` over the newest token and a draft of `rows - 1` tokens, after
    `context` cached tokens. Raises ValueError for less than three rows: they cannot branch."""
    if rows < 3:
        raise ValueError(f"verification_cost(rows={rows}): expected at least 3, so that a tree is")
    loaded = load_model(model, EngineConfig(dtype=dtype), progress=False)
    config = loaded.config
    ops = select_ops(config.config.kernels.backend, config.device, config.dtype)
    one, _ = make_batch(config.model, [1], [context + 1], config.device)
    chain, blocks = make_batch(config.model, [rows], [context + rows], config.device)
    chain = replace(chain, sample_rows=torch.arange(rows, device=config.device))
    tree = replace(chain, tree=_masks(_bush(rows - 1)).to(config.device))
    decoder = Decoder(config.model, loaded.weights, ops, context + rows)
    attention = PagedAttention(config.model, _caches(loaded, blocks), ops)
    passes: dict[str, Pass] = {
        "one row": partial(_forward, decoder, attention, one),
        "chain": partial(_forward, decoder, attention, chain),
        "tree": partial(_forward, decoder, attention, tree),
    }
    if decoder.runs_in_one_call:
        plain = PagedAttention(config.model, attention.caches, TorchOps())
        passes["tree, by operator"] = partial(_forward, decoder, plain, tree)
    timed = {name: partial(_seconds, run, config.device) for name, run in passes.items()}
    return VerificationCost(
        device=describe_machine().processor(config.device),
        threads=torch.get_num_threads(),
        dtype=config.config.dtype,
        rows=rows,
        context=context,
        seconds=interleave(timed, rounds, warmup=timed, progress=False),
    )


def _bush(num_tokens: int) -> Draft:
    """A binary tree: every token has two continuations, as far as the tokens go."""
    return Draft((0,) * num_tokens, tuple((index - 2) // 2 for index in range(num_tokens)))


def _masks(draft: Draft) -> Tensor:
    """The tree masks of the newest token's row and the draft's."""
    branches = [draft.branch(index) for index in range(len(draft))]
    return torch.tensor([1, *(1 + sum(2 << each for each in branch) for branch in branches)])


def _caches(loaded: LoadedModel, num_blocks: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """Pages for every layer, filled with small numbers."""
    caches = []
    for layer in loaded.config.model.layers:
        shape = (num_blocks, layer.mixer.heads.num_kv_heads, PAGE, layer.mixer.heads.head_dim)
        pages = [torch.full(shape, 0.01, dtype=loaded.config.dtype) for _ in range(2)]
        caches.append((pages[0].to(loaded.config.device), pages[1].to(loaded.config.device)))
    return tuple(caches)


@torch.inference_mode()
def _forward(decoder: Decoder, attention: PagedAttention, batch: ForwardBatch) -> Tensor:
    hidden = decoder.forward(batch, attention.plan(batch))
    return decoder.head(hidden, batch.sample_rows)


def _seconds(run: Pass, device: torch.device, repeats: int = 20) -> float:
    """Median of some passes in a row."""
    clock, found = WallClock(), []
    for _ in range(repeats):
        start = clock.now()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(clock.now() - start)
    return median(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `minserve bench verify`."""
    parser.add_argument("--model", default="zoo/base", help="default: %(default)s")
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=8, help="newest token and draft (default: 8)")
    parser.add_argument("--context", type=int, default=200, help="cached tokens (default: 200)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measure and report."""
    cost = verification_cost(
        args.model,
        dtype=args.dtype,
        rows=args.rows,
        context=args.context,
        rounds=args.repeats,
    )
    print(
        f"{args.model}, {cost.dtype}, {cost.threads} thread(s), {cost.context} cached tokens, on "
        f"{cost.device}; median (spread) of {args.repeats} interleaved rounds"
    )
    for name, seconds in cost.seconds.items():
        rows = 1 if name == "one row" else cost.rows
        ms = Spread.of([each * 1e3 for each in seconds])
        print(f"{name:18} {rows:3} row(s)  {ms} ms, {cost.times(name)} times one row")
    return 0
