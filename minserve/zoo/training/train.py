"""Trains `zoo/base` on Python source.

This file has the command; `trainer` has the state of a run, `loop` its course and `data` its text.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from minserve.zoo import ZOO
from minserve.zoo.corpus.data import Sampler, load_streams, prepare, split_table
from minserve.zoo.training.budget import Budget, seconds_until
from minserve.zoo.training.loop import run
from minserve.zoo.training.trainer import TrainConfig, Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Train zoo/base on this machine's Python source. Run it again to continue a stopped run."""
    parser = argparse.ArgumentParser(prog="minserve.zoo.training.train", description=main.__doc__)
    parser.add_argument("--minutes", type=float, help="active time to train for")
    parser.add_argument("--until", help="UTC time of day, HH:MM, by which the run is complete")
    parser.add_argument("--steps", type=int, help="updates to make, whatever time they take")
    parser.add_argument("--run", type=Path, default=Path("work/zoo"), help="working folder")
    parser.add_argument("--output", type=Path, default=ZOO / "base")
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    within_s = seconds_until(args.until) if args.until else None
    budget = Budget(args.steps, args.minutes, within_s)
    facts = prepare(args.run / "tokens", args.output)
    print(json.dumps(facts["mixes"]), flush=True)
    sampler = Sampler(load_streams(args.run / "tokens"), args.seed, split_table(args.output))
    trainer = Trainer(TrainConfig(seed=args.seed, compile=args.compile), sampler)
    run(trainer, budget, args.run / "base", args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
