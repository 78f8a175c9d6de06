"""Trains `zoo/draft`: first on text, then to match the probabilities of `zoo/base`.

Knows the draft's shape, when training by the teacher begins and on which text: the corpus, and text
that the teacher wrote. The loop, the optimizers and the checkpoint are those of `train`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minserve.zoo import ZOO
from minserve.zoo.corpus.data import Sampler, load_streams, prepare, split_table
from minserve.zoo.corpus.own_text import digest, prepare_own_text
from minserve.zoo.corpus.source import HEADLINE, held_out_path
from minserve.zoo.corpus.tokenizer import END_OF_TEXT_ID, load_tokenizer
from minserve.zoo.evaluation.score import cut
from minserve.zoo.training.budget import Budget, seconds_until
from minserve.zoo.training.distil_loss import distil_loss
from minserve.zoo.training.export import load_net
from minserve.zoo.training.loop import run
from minserve.zoo.training.net import NetConfig, rotary_table
from minserve.zoo.training.taught import TaughtBatches
from minserve.zoo.training.trainer import TrainConfig, Trainer

#: Two layers, the fewest that can copy earlier text. Most of the forward pass is the head.
DRAFT = NetConfig(hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=384)


@dataclass(frozen=True)
class DistilConfig(TrainConfig):
    """Everything that decides a distillation, except how long it may take."""

    net: NetConfig = field(default_factory=lambda: DRAFT)
    teach_from: float = 0.35  # progress at which the teacher is first used; text alone is cheaper
    own_share: float = 0.75  # after that, share of the windows that the teacher wrote
    own_parts: int = 35  # files of 256 continuations each
    replays: int = 3  # batches used again for each batch computed by the teacher
    hard_share: float = 0.10  # weight of the text's own next token beside the teacher's


class Distiller(Trainer):
    """A trainer whose targets, from `teach_from` on, are a teacher's probabilities."""

    def __init__(
        self, config: DistilConfig, sampler: Sampler, teacher_folder: Path, run_folder: Path
    ) -> None:
        super().__init__(config, sampler)
        self.distil_config = config
        self.teacher_folder = teacher_folder
        self.run_folder = run_folder
        self._teacher: Callable[..., Any] | None = None
        self._teacher_head = torch.empty(0)

    def begin_teaching(self) -> None:
        """Load the teacher and the text it wrote; if there is none yet, it writes it now."""
        own = prepare_own_text(
            self.teacher_folder, self.sampler.streams, self.run_folder, self.distil_config.own_parts
        )
        self.sampler.add("own", own)
        self.taught = TaughtBatches(
            self.run_folder / "taught" / digest(self.teacher_folder), self.config.seed
        )
        teacher = load_net(self.teacher_folder)
        self.teacher_config = teacher.config
        self._teacher_head = teacher.embed.detach()
        compile_it = self.config.compile
        self._teacher = torch.compile(teacher, dynamic=False) if compile_it else teacher

    @torch.no_grad()
    def teacher_hidden(self, inputs: Tensor) -> Tensor:
        """The teacher's normed hidden states [rows, length, teacher_width]."""
        assert self._teacher is not None
        cos, sin = rotary_table(self.teacher_config, inputs.shape[1])
        hidden: Tensor = self._teacher(inputs, cos, sin)
        return hidden

    def shares(self, progress: float) -> Mapping[str, float]:
        """As for the base; from `teach_from` on, with a share of the teacher's text."""
        text = super().shares(progress)
        if progress < self.distil_config.teach_from:
            return text
        own = self.distil_config.own_share
        return {name: (1.0 - own) * share for name, share in text.items()} | {"own": own}

    def batch(self, progress: float) -> tuple[Tensor, ...]:
        """Text alone, or text and the teacher's hidden states: newly computed, or used again."""
        config = self.distil_config
        if progress < config.teach_from:
            return super().batch(progress)
        if self._teacher is None:
            self.begin_teaching()
        if self.step_count % (1 + config.replays):
            length = config.long_length if progress >= config.long_from else config.short_length
            again = self.taught.draw(self.step_count, length)
            if again is not None:
                return again
        inputs, targets = super().batch(progress)
        return self.taught.keep(self.step_count, (inputs, targets, self.teacher_hidden(inputs)))

    def loss(self, inputs: Tensor, targets: Tensor, *more: Tensor) -> Tensor:
        """Cross-entropy with the text, or with teacher and text."""
        if not more:
            return super().loss(inputs, targets)
        cos, sin = rotary_table(self.config.net, inputs.shape[1])
        return distil_loss(
            self.trunk(inputs, cos, sin).flatten(0, 1),
            self.net.embed,
            targets.flatten(),
            more[0].flatten(0, 1),
            self._teacher_head,
            self.distil_config.hard_share,
        )

    def score(self, model_folder: Path) -> dict[str, float]:
        """Bits per byte and, once the teacher is used, how often both have the same
        most likely token."""
        scores = super().score(model_folder)
        if self._teacher is not None:
            scores["held_out_agreement"] = round(self._text_agreement(model_folder), 4)
        return scores

    @torch.no_grad()
    def _text_agreement(self, model_folder: Path, window: int = 256) -> float:
        bpe = load_tokenizer(model_folder)
        same = count = 0
        cos, sin = rotary_table(self.config.net, window)
        for module in HEADLINE:
            text = held_out_path(module).read_text(encoding="utf-8")
            ids = bpe.encode(text, add_special_tokens=False).ids
            rows = [[END_OF_TEXT_ID, *row[:-1]] for row in cut(ids, window) if len(row) == window]
            for part in torch.split(torch.tensor(rows), 16):
                ours = (self.net(part, cos, sin) @ self.net.embed.t()).argmax(-1)
                theirs = (self.teacher_hidden(part) @ self._teacher_head.t()).argmax(-1)
                same += int((ours == theirs).sum())
                count += ours.numel()
        return same / count


def main(argv: Sequence[str] | None = None) -> int:
    """Train zoo/draft from zoo/base. Run it again to continue a stopped run."""
    parser = argparse.ArgumentParser(prog="minserve.zoo.training.distil", description=main.__doc__)
    parser.add_argument("--minutes", type=float, help="active time to train for")
    parser.add_argument("--until", help="UTC time of day, HH:MM, by which the run is complete")
    parser.add_argument("--steps", type=int, help="updates to make, whatever time they take")
    parser.add_argument("--run", type=Path, default=Path("work/zoo"), help="working folder")
    parser.add_argument("--teacher", type=Path, default=ZOO / "base")
    parser.add_argument("--output", type=Path, default=ZOO / "draft")
    parser.add_argument("--teach-from", type=float, default=DistilConfig.teach_from)
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves them")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    within_s = seconds_until(args.until) if args.until else None
    budget = Budget(args.steps, args.minutes, within_s)
    args.output.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(args.teacher / name, args.output / name)
    prepare(args.run / "tokens", args.output)
    sampler = Sampler(load_streams(args.run / "tokens"), args.seed, split_table(args.output))
    config = DistilConfig(seed=args.seed, compile=args.compile, teach_from=args.teach_from)
    trainer = Distiller(config, sampler, args.teacher, args.run)
    run(trainer, budget, args.run / "draft", args.output, score_every_s=300.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
