"""A teacher's hidden states over windows, kept on disk to be used again.

A small student needs to see a window several times, and a pass of the teacher takes longer than the
student's own step. Knows batches, steps and files; knows nothing about networks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: Inputs and targets [rows, length], and the teacher's hidden states [rows, length, width].
Taught = tuple[Tensor, Tensor, Tensor]


class TaughtBatches:
    """Batches by the step at which they were made.

    The batch drawn at a step depends only on that step's number and on the batches of earlier
    steps, so that a resumed run draws the same batches as an uninterrupted one.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.seed = seed
        self._steps: dict[int, set[int]] = {}  # window length -> steps with a batch of it
        for path in folder.glob("*-*.npz"):
            length, step = path.stem.split("-")
            self._steps.setdefault(int(length), set()).add(int(step))

    def keep(self, step: int, batch: Taught) -> Taught:
        """Store the batch made at `step`; returns it as it will be read, rounded to float16."""
        inputs, targets, hidden = batch
        length = inputs.shape[1]
        path = self._path(length, step)
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.savez(
                file,
                inputs=inputs.numpy().astype(np.uint16),
                targets=targets.numpy().astype(np.uint16),
                hidden=hidden.numpy().astype(np.float16),
            )
        temporary.replace(path)
        self._steps.setdefault(length, set()).add(step)
        return inputs, targets, hidden.half().float()

    def draw(self, step: int, length: int) -> Taught | None:
        """A batch made before `step`, with windows of `length`; None if there is none."""
        earlier = sorted(made for made in self._steps.get(length, ()) if made < step)
        if not earlier:
            return None
        made = earlier[int(np.random.default_rng([self.seed, step]).integers(len(earlier)))]
        with np.load(self._path(length, made)) as stored:
            return (
                torch.from_numpy(stored["inputs"].astype(np.int64)),
                torch.from_numpy(stored["targets"].astype(np.int64)),
                torch.from_numpy(stored["hidden"].astype(np.float32)),
            )

    def _path(self, length: int, step: int) -> Path:
        return self.folder / f"{length}-{step:07}.npz"
