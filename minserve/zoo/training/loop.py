"""Runs a trainer until its budget is spent: checkpoints, progress line, curve, exports.

Knows when to save, score and report; knows nothing about what a step does.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path

from minserve.zoo.corpus.data import token_lengths
from minserve.zoo.training.budget import Budget
from minserve.zoo.training.export import export
from minserve.zoo.training.trainer import Trainer


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
    """Train until the budget is spent, resuming from the checkpoint in `run_folder`
    if there is one.

    The state at the beginning of the decay is kept as `before_decay.pt`: to train longer, continue
    from there (copy it over `checkpoint.pt`), not from the end, where the rate is zero.
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
            scores = trainer.score(model_folder)
            trainer.curve[-1:] = [trainer.curve[-1] | scores]
            print(f"  {scores}", flush=True)
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
