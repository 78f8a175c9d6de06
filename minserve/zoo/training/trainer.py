"""The state of a training run, and one step of it: net, optimizers, schedule, checkpoint.

Knows how a batch becomes an update and how everything is saved; knows nothing about how long a run
lasts (`budget`, `loop`), where the source comes from (`data`, `corpus`), how matrices are updated
(`muon`) or how files are named for Hugging Face (`export`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minserve.zoo.corpus.data import DECAY_SHARES, SHARES, Sampler
from minserve.zoo.evaluation.score import Score, score_ids
from minserve.zoo.training.muon import Muon
from minserve.zoo.training.net import Net, NetConfig, head_loss, rotary_table


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

    def shares(self, progress: float) -> Mapping[str, float]:
        """The share of the windows from each stream at `progress`."""
        return DECAY_SHARES if progress >= self.config.decay_from else SHARES

    def batch(self, progress: float) -> tuple[Tensor, ...]:
        """The input of the next step: inputs and targets [rows, length], and any further arguments
        of `loss`, row by row."""
        config = self.config
        length = config.long_length if progress >= config.long_from else config.short_length
        shares = self.shares(progress)
        return self.sampler.batch(config.tokens_per_step // length, length, shares)

    def loss(self, inputs: Tensor, targets: Tensor, *more: Tensor) -> Tensor:
        """The quantity that a step minimises: the mean over `targets`, in nats; `more`
        comes from `batch`."""
        cos, sin = rotary_table(self.config.net, inputs.shape[1])
        hidden = self.trunk(inputs, cos, sin)
        return head_loss(hidden.flatten(0, 1), self.net.embed, targets.flatten())

    def score(self, model_folder: Path) -> dict[str, float]:
        """Figures on held-out text for the curve; never trained on."""
        bits = headline_score(self.net, model_folder)
        return {"held_out_bits_per_byte": round(bits, 4)}

    def step(self, progress: float) -> tuple[float, Tensor]:
        """One update at `progress`. Returns the loss in nats and the targets it was computed on."""
        config = self.config
        batch = self.batch(progress)
        inputs, targets = batch[:2]
        rows = max(1, config.tokens_per_pass // inputs.shape[1])
        passes = math.ceil(len(inputs) / rows)
        total = 0.0
        for part in zip(*(torch.split(each, rows) for each in batch), strict=True):
            loss = self.loss(*part) / passes
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
        """Write the whole state; a kill at any time leaves the old file or the new one."""
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
        """Continue from a state written by `save`."""
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
    from minserve.zoo.corpus.source import HEADLINE, held_out_path
    from minserve.zoo.corpus.tokenizer import load_tokenizer

    bpe = load_tokenizer(tokenizer_folder)
    score = Score(0.0, 0, 0)
    for module in HEADLINE:
        text = held_out_path(module).read_text(encoding="utf-8")
        ids = bpe.encode(text, add_special_tokens=False).ids
        score += score_ids(net.logits, ids, len(text.encode()), window)
    return score.bits_per_byte
