"""Trains a zoo model: resumable, driven by a time budget, safe to pause and to kill.

Knows the loop, the schedule, checkpoints and the progress line; knows nothing about where the
source comes from (`data`, `corpus`), how matrices are stepped (`muon`) or how files are named
for Hugging Face (`export`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minserve.zoo.budget import Budget, seconds_until
from minserve.zoo.data import (
    DECAY_SHARES,
    SHARES,
    Sampler,
    load_streams,
    prepare,
    split_table,
    token_lengths,
)
from minserve.zoo.export import export
from minserve.zoo.muon import Muon
from minserve.zoo.net import Net, NetConfig, head_loss, rotary_table
from minserve.zoo.score import Score, score_ids


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run, except how long it may take."""

    net: NetConfig = field(default_factory=NetConfig)
    seed: int = 0
    tokens_per_step: int = 4096
    tokens_per_pass: int = 4096
    short_length: int = 256
    long_length: int = 1024
    long_from: float = 0.84  # progress at which windows become long
    decay_from: float = 0.60  # progress at which the rate begins to fall, linearly to zero
    warmup_steps: int = 100
    muon_lr: float = 0.015
    muon_weight_decay: float = 0.05
    adam_lr: float = 2e-3
    compile: bool = False


class Trainer:
    """A network, its two optimizers, its sampler, and the numbers of the run so far."""

    def __init__(self, config: TrainConfig, sampler: Sampler) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.sampler = sampler
        self.net = Net(config.net)
        self.step_count = 0
        self.tokens = 0
        self.active_s = 0.0
        self.curve: list[dict[str, Any]] = []
        net = config.net
        kv = net.num_kv_heads * net.head_dim
        rows = {
            "qkv": (net.num_heads * net.head_dim, kv, kv),
            "gate_up": (net.intermediate_size, net.intermediate_size),
        }
        matrices: list[tuple[Tensor, tuple[int, ...]]] = []
        others: list[Tensor] = []
        for name, parameter in self.net.named_parameters():
            if parameter.ndim == 2 and name != "embed":
                last = name.rsplit(".", maxsplit=1)[-1]
                matrices.append((parameter, rows.get(last, (parameter.shape[0],))))
            else:
                others.append(parameter)
        self.muon = Muon(matrices, weight_decay=config.muon_weight_decay)
        self.adam = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, foreach=True)
        self.trunk = torch.compile(self.net, dynamic=False) if config.compile else self.net

    def rate(self, progress: float) -> float:
        """The share of the peak learning rate: warm up by steps, hold, fall linearly to zero."""
        warm = min(1.0, (self.step_count + 1) / self.config.warmup_steps)
        return warm * max(0.0, min(1.0, (1.0 - progress) / (1.0 - self.config.decay_from)))

    def step(self, progress: float) -> tuple[float, Tensor]:
        """One update at `progress`. Returns the loss in nats and the targets it was taken on."""
        config = self.config
        length = config.long_length if progress >= config.long_from else config.short_length
        shares = DECAY_SHARES if progress >= config.decay_from else SHARES
        cos, sin = rotary_table(config.net, length)
        inputs, targets = self.sampler.batch(config.tokens_per_step // length, length, shares)
        rows = max(1, config.tokens_per_pass // length)
        passes = math.ceil(len(inputs) / rows)
        total = 0.0
        for x, y in zip(torch.split(inputs, rows), torch.split(targets, rows), strict=True):
            hidden = self.trunk(x, cos, sin)
            loss = head_loss(hidden.flatten(0, 1), self.net.embed, y.flatten()) / passes
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if not math.isfinite(total):
            raise FloatingPointError(f"The loss of step {self.step_count} is {total}.")
        rate = self.rate(progress)
        self.muon.step(config.muon_lr * rate)
        for group in self.adam.param_groups:
            group["lr"] = config.adam_lr * rate
        self.adam.step()
        self.net.zero_grad(set_to_none=True)
        self.step_count += 1
        self.tokens += targets.numel()
        return total, targets

    def save(self, path: Path) -> None:
        """Write the whole state; a kill at any moment leaves the old file or the new one."""
        state = {
            "config": asdict(self.config),
            "net": self.net.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "sampler": self.sampler.state_dict(),
            "step": self.step_count,
            "tokens": self.tokens,
            "active_s": self.active_s,
            "curve": self.curve,
        }
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        if state["config"]["net"] != asdict(self.config.net):
            raise ValueError(
                f"{path} holds a model of another shape; give another --run, or delete it."
            )
        self.net.load_state_dict(state["net"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.sampler.load_state_dict(state["sampler"])
        self.step_count, self.tokens = state["step"], state["tokens"]
        self.active_s, self.curve = state["active_s"], state["curve"]


def headline_score(net: Net, tokenizer_folder: Path, window: int = 256) -> float:
    """Bits per byte over the four headline modules, for the curve; never trained on."""
    from minserve.zoo.corpus import HEADLINE, held_out_path
    from minserve.zoo.tokenizer import load_tokenizer

    bpe = load_tokenizer(tokenizer_folder)
    score = Score(0.0, 0, 0)
    for module in HEADLINE:
        text = held_out_path(module).read_text(encoding="utf-8")
        ids = bpe.encode(text, add_special_tokens=False).ids
        score += score_ids(net.logits, ids, len(text.encode()), window)
    return score.bits_per_byte


def run(
    trainer: Trainer,
    budget: Budget,
    run_folder: Path,
    model_folder: Path,
    *,
    save_every_s: float = 180.0,
    score_every_s: float = 900.0,
    log_every: int = 20,
) -> None:
    """Train until the budget is spent, resuming from the checkpoint in `run_folder` if any.

    The state in which the decay began is kept as `before_decay.pt`: a longer run continues well
    from there (copy it over `checkpoint.pt`), and badly from the end, where the rate was zero.
    """
    checkpoint = run_folder / "checkpoint.pt"
    run_folder.mkdir(parents=True, exist_ok=True)
    if checkpoint.is_file():
        trainer.load(checkpoint)
        print(
            f"resumed at step {trainer.step_count}, {trainer.tokens / 1e6:.2f} M tokens", flush=True
        )
    lengths = token_lengths(model_folder)
    recent: deque[tuple[float, int, int, float]] = deque(maxlen=50)
    clock = budget.clock
    last_save = last_score = clock.now()
    first_export = trainer.step_count == 0
    decay_lies_ahead = (
        budget.progress(trainer.step_count, trainer.active_s) < trainer.config.decay_from
    )
    while (progress := budget.progress(trainer.step_count, trainer.active_s)) < 1.0:
        if decay_lies_ahead and progress >= trainer.config.decay_from:
            decay_lies_ahead = False
            trainer.save(run_folder / "before_decay.pt")
        started = clock.now()
        loss, targets = trainer.step(progress)
        spent = budget.active(clock.now() - started)
        trainer.active_s += spent
        recent.append((loss, targets.numel(), int(lengths[targets].sum()), spent))
        done = trainer.step_count
        if done % log_every == 0:
            _report(trainer, budget, progress, recent)
        now = clock.now()
        if now - last_score > score_every_s or (first_export and done == 200):
            last_score, first_export = now, first_export and done != 200
            bits = headline_score(trainer.net, model_folder)
            trainer.curve[-1:] = [trainer.curve[-1] | {"held_out_bits_per_byte": round(bits, 4)}]
            print(f"  held-out bits/byte {bits:.4f}", flush=True)
            export(trainer.net, model_folder, model_folder, trainer.curve)
        if now - last_save > save_every_s:
            last_save = now
            trainer.save(checkpoint)
    trainer.save(checkpoint)
    export(trainer.net, model_folder, model_folder, trainer.curve)
    print(f"done: {trainer.step_count} steps, {trainer.tokens / 1e6:.2f} M tokens", flush=True)


def _report(
    trainer: Trainer,
    budget: Budget,
    progress: float,
    recent: deque[tuple[float, int, int, float]],
) -> None:
    tokens = sum(n for _, n, _, _ in recent)
    nats = sum(loss * n for loss, n, _, _ in recent) / tokens
    bits = nats * tokens / math.log(2.0) / max(1, sum(b for _, _, b, _ in recent))
    speed = tokens / max(1e-9, sum(s for _, _, _, s in recent))
    left_s = trainer.active_s * (1.0 - progress) / max(progress, 1e-9)
    point = {
        "step": trainer.step_count,
        "tokens": trainer.tokens,
        "active_s": round(trainer.active_s, 1),
        "progress": round(progress, 4),
        "rate": round(trainer.rate(progress), 4),
        "loss": round(nats, 4),
        "bits_per_byte": round(bits, 4),
    }
    trainer.curve.append(point)
    print(
        f"step {trainer.step_count:5}  {trainer.tokens / 1e6:7.3f} M tokens  loss {nats:.4f}  "
        f"bits/byte {bits:.4f}  rate {point['rate']:.3f}  {speed:5.0f} tokens/s  "
        f"{100 * progress:5.1f} %  {left_s / 60:5.1f} min left",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train zoo/base on this machine's Python source. Run it again to continue a stopped run."""
    parser = argparse.ArgumentParser(prog="minserve.zoo.train", description=main.__doc__)
    parser.add_argument("--minutes", type=float, help="active time to train for")
    parser.add_argument("--until", help="UTC time of day, HH:MM, by which the run is complete")
    parser.add_argument("--steps", type=int, help="updates to make, whatever time they take")
    parser.add_argument("--run", type=Path, default=Path("work/zoo"), help="working folder")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "base")
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
