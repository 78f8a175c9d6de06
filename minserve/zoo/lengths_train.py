"""Fits the length probe: lets the model continue signatures, counts the tokens, and regresses.

`python -m minserve.zoo.lengths_train` writes `length_probe.json` beside the weights, with its
quality on signatures of the held-out modules. The base model rarely draws its end-of-sequence
token in the middle of code, and most of its functions are longer than any reasonable limit.
So a continuation ends with its first paragraph: at the first blank line, or the first line at
the left margin.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minserve.config import EngineConfig
from minserve.llm import LLM
from minserve.loading import LoadedModel, load_model
from minserve.request import SamplingParams
from minserve.zoo.corpus.source import HELD_OUT, held_out_name, standard_library
from minserve.zoo.evaluation.continuations import signatures
from minserve.zoo.lengths import FILE, LastTokenStream, LengthMap, weights_digest

TEMPERATURE, MAX_TOKENS = 0.8, 192
END = ("\n\n", *(f"\n{first}" for first in string.ascii_letters + "_@#\"'([{}])"))
"""A blank line, or a line break followed by a character that may begin a line at
the left margin."""


@dataclass(frozen=True)
class Written:
    """A prompt, and how many tokens the model wrote before its first paragraph ended."""

    prompt_token_ids: tuple[int, ...]
    num_tokens: int
    ended: bool
    """False: it was cut at the most tokens allowed."""


def one_paragraph(seed: int | None = None) -> SamplingParams:
    """How lengths are defined here: sampled, to the end of the first paragraph."""
    return SamplingParams(max_tokens=MAX_TOKENS, temperature=TEMPERATURE, stop=END, seed=seed)


def training_modules() -> list[str]:
    """Top-level modules of the standard library that are not held out."""
    names = sorted(path.stem for path in standard_library().glob("*.py"))
    return [name for name in names if not held_out_name(name) and not name.startswith("_")]


def write_all(llm: LLM, prompts: Sequence[str], seed: int) -> list[Written]:
    """Continue every prompt, once."""
    params = [one_paragraph(seed + index) for index in range(len(prompts))]
    outputs = llm.generate(list(prompts), params)
    return [
        Written(out.prompt_token_ids, len(out.token_ids), out.finish_reason == "stop")
        for out in outputs
    ]


def fit(features: Tensor, lengths: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """Mean, scale, weights and bias of a ridge regression of `log(1 + lengths)`."""
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    x, y = (features - mean) / scale, torch.log1p(lengths)
    penalty = ridge * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean()))
    return mean, scale, weights, float(y.mean())


def quality(predicted: Tensor, actual: Tensor) -> dict[str, float]:
    """Quality of predicted logarithms: spread of the error, share of variance explained, and share
    of pairs of different length that are in the right order (0.5 is guessing; ties of the
    prediction count half)."""
    error = predicted - actual
    first, second = torch.triu_indices(len(actual), len(actual), 1)
    differ = actual[first] != actual[second]
    order = torch.sign(predicted[first] - predicted[second]) * torch.sign(
        actual[first] - actual[second]
    )
    return {
        "log_error_std": float(error.std()),
        "r2": 1 - float((error**2).mean() / actual.var(unbiased=False)),
        "pairs_in_order": float((order[differ].mean() + 1) / 2),
    }


def _log(written: Sequence[Written]) -> Tensor:
    return torch.log1p(torch.tensor([w.num_tokens for w in written], dtype=torch.float64))


def evaluate(fitted: LengthMap, features: Tensor, written: Sequence[Written]) -> dict[str, Any]:
    """The quality of the probe, of the prompt's length alone (shorter prompt, shorter answer) and
    of one constant, on the same continuations. A second draw of the same prompts gives the best
    possible result: when sampling, a prompt does not determine its answer's length."""
    actual = _log(written)
    mean, scale = torch.tensor(fitted.mean), torch.tensor(fitted.scale)
    weights = torch.tensor(fitted.weights, dtype=torch.float64)
    predicted = ((features - mean) / scale) @ weights + fitted.bias
    return {
        "prompts": len(written),
        "probe": quality(predicted, actual),
        "one number for all": quality(torch.full_like(actual, fitted.bias), actual),
        "prompt length": {"pairs_in_order": quality(features[:, -1], actual)["pairs_in_order"]},
    }


def spread(written: Sequence[Written]) -> dict[str, float]:
    """Statistics of lengths."""
    ordered = sorted(w.num_tokens for w in written)
    return {
        "prompts": len(ordered),
        "median_tokens": ordered[len(ordered) // 2],
        "mean_tokens": sum(ordered) / len(ordered),
        "p90_tokens": ordered[int(0.9 * len(ordered))],
        "share_cut_at_max_tokens": sum(not w.ended for w in written) / len(written),
    }


def train(loaded: LoadedModel, written: Sequence[Written], layer: int, seed: int) -> LengthMap:
    """Fit on four fifths and choose the penalty on the rest."""
    stream = LastTokenStream(loaded, layer)
    features = torch.stack([stream.features(w.prompt_token_ids) for w in written])
    lengths = torch.tensor([float(w.num_tokens) for w in written], dtype=torch.float64)
    order = torch.randperm(len(written), generator=torch.Generator().manual_seed(seed))
    kept, tuned = order[len(order) // 5 :], order[: len(order) // 5]

    def error(ridge: float) -> float:
        mean, scale, weights, bias = fit(features[kept], lengths[kept], ridge)
        predicted = ((features[tuned] - mean) / scale) @ weights + bias
        return float(((predicted - torch.log1p(lengths[tuned])) ** 2).mean())

    ridge = min((10.0**power for power in range(0, 6)), key=error)
    mean, scale, weights, bias = fit(features, lengths, ridge)
    return LengthMap(
        layer=layer,
        mean=tuple(round(v, 6) for v in mean.tolist()),
        scale=tuple(round(v, 6) for v in scale.tolist()),
        weights=tuple(round(v, 6) for v in weights.tolist()),
        bias=round(bias, 6),
        max_tokens=MAX_TOKENS,
        card={"ridge": ridge, "tuning_mse": error(ridge)},
    )


def main(argv: list[str] | None = None) -> int:
    """Gather, fit, evaluate, write."""
    parser = argparse.ArgumentParser(description="Fit the length probe of a model.")
    parser.add_argument("--model", default="zoo/base")
    parser.add_argument("--prompts", type=int, default=2000, help="to train on (default: 2000)")
    parser.add_argument("--held-out", type=int, default=400, help="to judge by (default: 400)")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: beside the weights")
    options = parser.parse_args(argv)
    config = EngineConfig().with_values({"dtype": "float32", "scheduling.max_model_len": 512})
    sets: list[list[Written]] = []
    with LLM(options.model, config) as llm:
        for modules, count in (
            (training_modules(), options.prompts),
            (list(HELD_OUT), options.held_out),
        ):
            prompts = signatures(modules)
            random.Random(options.seed).shuffle(prompts)
            sets.append(write_all(llm, prompts[:count], options.seed + 1_000_000 * len(sets)))
        again = write_all(llm, prompts[: options.held_out], options.seed + 2_000_000)
    loaded = load_model(options.model, config)
    candidates = [train(loaded, sets[0], layer, options.seed) for layer in options.layers]
    best = min(candidates, key=lambda each: float(each.card["tuning_mse"]))
    stream = LastTokenStream(loaded, best.layer)
    features = torch.stack([stream.features(w.prompt_token_ids) for w in sets[1]])
    best.card.update(
        {
            "weights": weights_digest(loaded.path),
            "temperature": TEMPERATURE,
            "length": "output tokens to the first blank line or line at the left margin",
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
            "tuning_mse_by_layer": {str(c.layer): c.card["tuning_mse"] for c in candidates},
            "training": spread(sets[0]),
            "held_out_lengths": spread(sets[1]),
            "held_out": evaluate(best, features, sets[1])
            | {"another draw of the same prompts": quality(_log(again), _log(sets[1]))},
            "variance_of_log_lengths": float(_log(sets[1]).var()),
        }
    )
    target = options.out or Path(loaded.path) / FILE
    target.write_text(best.to_json(), encoding="utf-8")
    print(json.dumps(best.card, indent=1))
    print(f"log lengths: e**{math.sqrt(best.card['variance_of_log_lengths']):.2f} is one deviation")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
