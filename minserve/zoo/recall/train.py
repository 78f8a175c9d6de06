"""Trains `zoo/recall-gqa`, and models of other shapes, to look far back.

Knows the curriculum: sequences are short at first, and double each time that recall at the present
length is good; shorter ones stay in the mix. The loss counts answers only. Under a seed and
`--steps`, a run is deterministic. Recall forms late and
suddenly (in the shipped run after 4.4 of 5.7 million tokens), so a run may end before it: give
other shapes more steps, and more than one seed, before they are compared.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minserve.zoo import ZOO
from minserve.zoo.recall.tasks import TASKS, mixed
from minserve.zoo.recall.vocabulary import SYMBOLS, write_vocabulary
from minserve.zoo.training.budget import Budget
from minserve.zoo.training.export import export
from minserve.zoo.training.net import Net, NetConfig, rotary_table

LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
GQA = NetConfig(
    vocab_size=len(SYMBOLS),
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=256,
    rope_theta=10_000.0,
)


@dataclass(frozen=True)
class RecallConfig:
    """Everything that decides a run, except how long it may take."""

    net: NetConfig = field(default_factory=lambda: GQA)
    seed: int = 0
    tokens_per_step: int = 2048
    present_share: float = 0.6  # share of the steps at the longest length reached so far
    advance_at: float = 0.95  # accuracy of recall at which the length doubles
    advance_steps: int = 8  # steps at the present length over which it is taken
    warmup_steps: int = 50
    decay_from: float = 0.7  # progress at which the rate begins to fall, linearly to zero
    learning_rate: float = 2e-3
    init_std: float = 0.02  # of the embedding and of what each block adds: small at first


class RecallTrainer:
    """A network, its optimizers, and the level of the curriculum (an index into `LENGTHS`)."""

    def __init__(self, config: RecallConfig) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.net = Net(config.net)
        for name, parameter in self.net.named_parameters():
            if name.endswith((".out", ".down")):
                torch.nn.init.normal_(parameter, std=config.init_std)
        torch.nn.init.normal_(self.net.embed, std=config.init_std)
        self.adam = torch.optim.AdamW(
            self.net.parameters(), betas=(0.9, 0.98), weight_decay=0.01, foreach=True
        )
        self.level = self.step_count = self.tokens = 0
        self.recent: deque[float] = deque(maxlen=config.advance_steps)
        self.curve: list[dict[str, Any]] = []

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sequences of the next step [rows, length], a mask of their answers of the same
        shape, and the task of each row [rows] as an index into `TASKS`.

        Everything is drawn from the seed and the number of the step.
        """
        config = self.config
        rng = np.random.default_rng([config.seed, self.step_count])
        level = self.level
        if level and rng.random() >= config.present_share:
            level = int(rng.integers(level))
        length = LENGTHS[level]
        drawn = [mixed(rng, length) for _ in range(config.tokens_per_step // length)]
        mask = torch.zeros(len(drawn), length, dtype=torch.bool)
        for row, (_, example) in enumerate(drawn):
            mask[row, example.answers] = True
        tokens = torch.from_numpy(np.stack([example.tokens for _, example in drawn]))
        return tokens, mask, torch.tensor([TASKS.index(task) for task, _ in drawn])

    def step(self, progress: float) -> None:
        """One update, a point of the curve, and a longer length if the present one is learnt."""
        config = self.config
        tokens, mask, tasks = self.batch()
        length = tokens.shape[1]
        hidden = self.net(tokens[:, :-1], *rotary_table(config.net, length - 1))
        logits = F.linear(hidden[mask[:, 1:]], self.net.embed)
        targets = tokens[mask]
        loss = F.cross_entropy(logits, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        warm = min(1.0, (self.step_count + 1) / config.warmup_steps)
        rate = warm * min(1.0, (1.0 - progress) / (1.0 - config.decay_from))
        for group in self.adam.param_groups:
            group["lr"] = config.learning_rate * rate
        self.adam.step()
        self.net.zero_grad(set_to_none=True)
        self.step_count += 1
        self.tokens += tokens.numel()
        right = (logits.argmax(-1) == targets).float()
        task_of = tasks[:, None].expand_as(mask)[mask]
        point = {"step": self.step_count, "tokens": self.tokens, "length": length}
        scores = {
            task: round(float(right[task_of == index].mean()), 4)
            for index, task in enumerate(TASKS)
            if bool((task_of == index).any())
        }
        self.curve.append(point | {"loss": round(float(loss.detach()), 4)} | scores)
        if length == LENGTHS[self.level] and "recall" in scores:
            self._advance(scores["recall"])

    def _advance(self, accuracy: float) -> None:
        self.recent.append(accuracy)
        full = len(self.recent) == self.config.advance_steps
        good = full and sum(self.recent) / len(self.recent) > self.config.advance_at
        if good and self.level + 1 < len(LENGTHS):
            self.level += 1
            self.recent.clear()


def train(config: RecallConfig, budget: Budget, output: Path) -> RecallTrainer:
    """Train until `budget` is spent and write the model to `output`, in between as well."""
    trainer = RecallTrainer(config)
    write_vocabulary(output, config.net.max_positions)
    clock, active_s = budget.clock, 0.0
    while (progress := budget.progress(trainer.step_count, active_s)) < 1.0:
        started = clock.now()
        trainer.step(progress)
        active_s += budget.active(clock.now() - started)
        if trainer.step_count % 20 == 0:
            print(f"{active_s:6.0f} s  {progress:.3f}  {trainer.curve[-1]}", flush=True)
        if trainer.step_count % 200 == 0:
            export(trainer.net, output, output, trainer.curve[::10])
    export(trainer.net, output, output, trainer.curve[::10])
    return trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Train a recall model. Its shape is that of zoo/recall-gqa unless the options change it."""
    parser = argparse.ArgumentParser(prog="minserve.zoo.recall.train", description=main.__doc__)
    parser.add_argument("--steps", type=int, help="updates to make, whatever time they take")
    parser.add_argument("--minutes", type=float, help="active time to train for")
    parser.add_argument("--output", type=Path, default=ZOO / "recall-gqa")
    parser.add_argument("--layers", type=int, default=GQA.num_layers)
    parser.add_argument("--width", type=int, default=GQA.hidden_size)
    parser.add_argument("--heads", type=int, default=GQA.num_heads)
    parser.add_argument("--kv-heads", type=int, default=GQA.num_kv_heads)
    parser.add_argument("--feed-forward", type=int, default=GQA.intermediate_size)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.heads % args.kv_heads:
        parser.error(f"--kv-heads must divide --heads; got {args.kv_heads} and {args.heads}.")
    if args.threads:
        torch.set_num_threads(args.threads)
    shape = NetConfig(
        vocab_size=len(SYMBOLS),
        hidden_size=args.width,
        num_layers=args.layers,
        num_heads=args.heads,
        num_kv_heads=args.kv_heads,
        intermediate_size=args.feed_forward,
        rope_theta=GQA.rope_theta,
    )
    config = RecallConfig(net=shape, seed=args.seed)
    train(config, Budget(args.steps, args.minutes), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
