"""The sampler as a textbook would write it: one row, float64, loops, nothing clever."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minserve.request import Request, SamplingParams


def request(
    params: SamplingParams,
    seed: int = 0,
    prompt: Sequence[int] = (0,),
    output: Sequence[int] = (),
    sample_index: int = 0,
) -> Request:
    return Request(
        request_id=f"r{seed}",
        prompt_token_ids=list(prompt),
        params=params,
        arrival_s=0.0,
        seed=seed,
        sample_index=sample_index,
        token_ids=[*prompt, *output],
    )


def probabilities(logits: Sequence[float], each: Request) -> np.ndarray:
    """The distribution that the next token of this request is drawn from."""
    params = each.params
    scores = np.array(logits, dtype=np.float64)
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    for token in set(each.token_ids):
        factor = params.repetition_penalty
        scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
    output = each.output_token_ids
    for token in set(output):
        scores[token] -= params.presence_penalty
        scores[token] -= params.frequency_penalty * output.count(token)
    if params.temperature == 0:
        chances = np.zeros(len(scores))
        chances[scores.argmax()] = 1
        return chances
    scores = (scores - scores.max()) / params.temperature
    if params.top_k:
        kth = sorted(scores, reverse=True)[min(params.top_k, len(scores)) - 1]
        scores[scores < kth] = -math.inf
    if params.top_p < 1:
        # Down the list until the tokens before this one reach top-p; equals stay together.
        chances, before, last = softmax(scores), 0.0, math.inf
        for token in sorted(range(len(scores)), key=lambda token: -scores[token]):
            if before >= params.top_p and scores[token] < last:
                scores[token] = -math.inf
            else:
                last = scores[token]
            before += chances[token]
    chances = softmax(scores)
    scores[chances < params.min_p * chances.max()] = -math.inf
    return softmax(scores)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def assert_drawn_from(counts: np.ndarray, chances: np.ndarray) -> None:
    """Pearson's chi-squared test at about four standard deviations (seeds are fixed).

    Outcomes expected fewer than 10 times are counted together.
    """
    assert counts[chances == 0].sum() == 0, "drew a token of probability 0"
    expected = chances * counts.sum()
    rare = expected < 10
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    freedom = len(seen) - 1
    if freedom < 1:
        return
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    # Wilson and Hilferty: the cube root of chi-squared over its mean is nearly normal.
    spread = 2 / (9 * freedom)
    normal = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    assert normal < 4, f"chi-squared {statistic:.1f} for {freedom} degrees of freedom"
