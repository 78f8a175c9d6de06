"""Bits per byte: the number by which the zoo's models are compared.

Knows windows, BOS and how bits become bits per byte; knows nothing about where logits come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Token ids [batch, length] -> logits [batch, length, vocab].
LogitsOf = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Score:
    """Bits spent on a number of bytes and tokens. Scores of several files can be added."""

    bits: float
    num_bytes: int
    num_tokens: int

    @property
    def bits_per_byte(self) -> float:
        """Bits divided by bytes."""
        return self.bits / self.num_bytes

    def __add__(self, other: Score) -> Score:
        return Score(
            self.bits + other.bits,
            self.num_bytes + other.num_bytes,
            self.num_tokens + other.num_tokens,
        )


def cut(ids: Sequence[int], window: int) -> list[list[int]]:
    """`ids` in windows of `window` tokens without overlap; the last may be shorter."""
    return [list(ids[i : i + window]) for i in range(0, len(ids), window)]


@torch.inference_mode()
def score_ids(
    logits_of: LogitsOf, ids: Sequence[int], num_bytes: int, window: int, bos: int = 0
) -> Score:
    """Score of a text of `num_bytes` bytes that tokenizes to `ids`.

    Each window is read alone with BOS in front, so its first token is predicted from BOS only;
    every token is predicted exactly once.
    """
    if window < 1 or num_bytes < 1:
        raise ValueError(f"A score needs a window and bytes; got {window} and {num_bytes}.")
    windows = cut(ids, window)
    bits = 0.0
    rows = max(1, 4096 // window)
    for start in range(0, len(windows), rows):
        group = windows[start : start + rows]
        longest = max(len(row) for row in group)
        # Padding is on the right, so causal attention keeps it out of every counted position.
        inputs = torch.tensor([[bos, *row[:-1]] + [bos] * (longest - len(row)) for row in group])
        targets = torch.tensor([row + [-100] * (longest - len(row)) for row in group])
        logits = logits_of(inputs).float()
        nats = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
        )
        bits += float(nats) / math.log(2.0)
    return Score(bits, num_bytes, len(ids))
