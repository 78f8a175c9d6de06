"""Scores a recall model on sequences it was not trained on, and writes them into its card.

Knows which lengths, numbers of pairs and distances are judged; the network is that of training, in
float32. An answer is right if the most likely symbol is the right one, all symbols before it given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minserve.zoo import ZOO
from minserve.zoo.recall.tasks import Example, copy, needle, recall
from minserve.zoo.training.export import load_net
from minserve.zoo.training.net import Net

Report = dict[str, Any]
LENGTHS = (128, 512, 1024, 2048)
PAIRS = (2, 8, 16, 32)
DISTANCES = (0, 64, 128, 256, 512, 1024, 1536, 2048)
COPIED = 32
QUESTIONS = 8
HELD_OUT_SEED = 1_000_000
"""Training draws from `[seed, step]` with small seeds; evaluation from this seed and beyond."""


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson, 1927)."""
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    spread /= 1 + z * z / count
    return max(0.0, middle - spread), min(1.0, middle + spread)


def summary(right: Sequence[bool]) -> Report:
    """Accuracy, its 95 % interval and the number of answers."""
    count, good = len(right), int(sum(right))
    low, high = interval(good, count)
    return {
        "accuracy": round(good / count, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "answers": count,
    }


@torch.inference_mode()
def judge(net: Net, examples: Sequence[Example], rows: int = 8) -> list[tuple[int, bool]]:
    """Distance and correctness of each answer of examples of one length."""
    judged = []
    for start in range(0, len(examples), rows):
        part = examples[start : start + rows]
        tokens = torch.from_numpy(np.stack([example.tokens for example in part]))
        best = net.logits(tokens[:, :-1]).argmax(-1).numpy()
        for example, row in zip(part, best, strict=True):
            right = row[example.answers - 1] == example.tokens[example.answers]
            judged += list(zip(example.distances.tolist(), right.tolist(), strict=True))
    return judged


def draw(seed: int, count: int, task: Callable[[np.random.Generator], Example]) -> list[Example]:
    """`count` held-out examples of a task."""
    rngs = (np.random.default_rng([HELD_OUT_SEED, seed, index]) for index in range(count))
    return [task(rng) for rng in rngs]


def evaluate(net: Net, sequences: int = 100) -> Report:
    """Every score, each from `sequences` sequences."""
    report: Report = {"sequences": sequences, "recall": {}, "copy": {}, "needle": {}}
    by_distance: list[tuple[int, bool]] = []
    for length in LENGTHS:
        cells = report["recall"][str(length)] = {}
        for pairs in PAIRS:
            examples = draw(
                length + pairs,
                sequences,
                lambda rng, n=length, p=pairs: recall(rng, n, p, QUESTIONS),  # type: ignore[misc]
            )
            judged = judge(net, examples)
            cells[str(pairs)] = summary([right for _, right in judged])
            if pairs == 8:
                by_distance += judged
        tasks: dict[str, Callable[[np.random.Generator], Example]] = {
            "copy": lambda rng, n=length: copy(rng, n, COPIED),  # type: ignore[misc]
            "needle": lambda rng, n=length: needle(rng, n),  # type: ignore[misc]
        }
        for name, task in tasks.items():
            judged = judge(net, draw(length, sequences, task))
            report[name][str(length)] = summary([right for _, right in judged])
    report["distance"] = {}
    for low, high in itertools.pairwise(DISTANCES):
        inside = [right for distance, right in by_distance if low <= distance < high]
        if inside:
            report["distance"][f"{low} to {high - 1}"] = summary(inside)
    return report


def _cell(score: Report) -> str:
    return f"{score['accuracy']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def tables(report: Report) -> str:
    """The scores as the tables of the card."""
    names = [f"recall, {pairs} pairs" for pairs in PAIRS]
    names += [f"copying {COPIED} symbols", "needle"]
    lines = ["| tokens | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for length in map(str, LENGTHS):
        cells = [_cell(report["recall"][length][str(pairs)]) for pairs in PAIRS]
        cells += [_cell(report[task][length]) for task in ("copy", "needle")]
        lines.append(f"| {int(length):,} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| distance in tokens, recall with 8 pairs | accuracy | answers |",
        "|---|---|---|",
    ]
    for name, score in report["distance"].items():
        lines.append(f"| {name} | {_cell(score)} | {score['answers']:,} |")
    return (
        f"{report['sequences']} held-out sequences a cell, {QUESTIONS} questions each (fewer if "
        "there are fewer pairs), bf16 weights, float32 arithmetic; 95 % binomial intervals in "
        "brackets.\n\n" + "\n".join(lines)
    )


def filled(card: str, report: Report) -> str:
    """`card` with the tables between its markers replaced by those of `report`."""
    begin, end = "<!-- recall: begin -->", "<!-- recall: end -->"
    text = f"{begin}\n{tables(report)}\n{end}"
    return re.sub(f"{begin}.*?{end}", lambda _: text, card, flags=re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Score a recall model; with --save, write evaluation.json and the tables of its card."""
    parser = argparse.ArgumentParser(prog="minserve.zoo.recall.evaluate", description=main.__doc__)
    parser.add_argument("--model", type=Path, default=ZOO / "recall-gqa", help="its directory")
    parser.add_argument("--sequences", type=int, default=100, help="for each score")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args(argv)
    report = evaluate(load_net(args.model), args.sequences)
    print(tables(report))
    if args.save:
        text = json.dumps(report, indent=1) + "\n"
        (args.model / "evaluation.json").write_text(text, encoding="utf-8")
        card = args.model / "README.md"
        if card.is_file():
            card.write_text(filled(card.read_text(encoding="utf-8"), report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
