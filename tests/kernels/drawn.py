"""What a sampling kernel may answer: batches of every kind of row, and the rule for its tokens.

The kernel sums in float32, `Sampler` in float64 and in another order, so where a uniform or a top-p
falls onto a boundary the two may part. How near is near is `epsilon`, in probability.
"""

from __future__ import annotations

import math
import os

import torch
from hypothesis import strategies as st
from torch import Tensor

from minserve.batch import SamplingBatch, to_device
from minserve.sampling import Sampler

EPSILON = 1e-6
GPU_EPSILON = 1e-5
"""A GPU's exponential is good to a few units in the last place, and its sums have their own order.
"""


def examples(count: int) -> int:
    """Drawn cases of a property: `count`, or fewer where MINSERVE_TEST_EXAMPLES says so, because on
    a GPU every new shape is a compilation."""
    return min(count, int(os.environ.get("MINSERVE_TEST_EXAMPLES", count)))


def sampling_batch(rows: list[tuple[float, int, float, float]], uniforms: Tensor) -> SamplingBatch:
    """Rows of (temperature, top-k, top-p, min-p), as `plan_sampling` would pack them."""
    params = torch.zeros(8, len(rows), dtype=torch.float64)
    params[:4] = torch.tensor(rows, dtype=torch.float64).T
    params[4], params[7] = 1.0, uniforms
    temperature, top_k, top_p, min_p = params[:4]
    sampled = temperature > 0
    return SamplingBatch(
        params=params,
        history=torch.zeros(3, 0, dtype=torch.int64),
        bias_tokens=torch.zeros(2, 0, dtype=torch.int64),
        bias_values=torch.zeros(0, dtype=torch.float64),
        logprob_rows=torch.zeros(0, dtype=torch.int64),
        num_logprobs=0,
        num_greedy=int((~sampled).sum()),
        max_top_k=int((top_k * sampled).max()),
        uses_top_p=bool((sampled & (top_p < 1)).any()),
        needs_mass=bool((sampled & (top_p < 1) & (top_k == 0)).any()),
        uses_min_p=bool((sampled & (min_p > 0)).any()),
    )


@st.composite
def batches(
    draw: st.DrawFn, vocabularies: list[int], most_rows: int
) -> tuple[Tensor, SamplingBatch]:
    """Logits, often with ties and bans, and how to draw from them."""
    num, vocab = draw(st.integers(1, most_rows)), draw(st.sampled_from(vocabularies))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(num, vocab, generator=generator) * draw(st.sampled_from([0.0, 1.0, 5.0]))
    if draw(st.booleans()):
        logits = (2 * logits).round() / 2
    if draw(st.booleans()) and vocab > 1:
        logits[:, torch.randint(0, vocab, (vocab // 3,), generator=generator)] = -math.inf
        logits[:, draw(st.integers(0, vocab - 1))] = 1.0
    row = st.tuples(
        st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        st.sampled_from([0, 0, 1, 3, 40, 10**6]),
        st.sampled_from([1.0, 1.0, 0.1, 0.5, 0.9, 0.999]),
        st.sampled_from([0.0, 0.0, 0.05, 0.5, 1.0]),
    )
    rows = draw(st.lists(row, min_size=num, max_size=num))
    uniforms = torch.rand(num, generator=generator, dtype=torch.float64)
    return logits, sampling_batch(rows, uniforms)


def check_drawn(
    logits: Tensor,
    batch: SamplingBatch,
    tokens: Tensor,
    thresholds: Tensor,
    epsilon: float = EPSILON,
) -> int:
    """Hold tokens and thresholds (`triton.sample.sample`) against their definition in float64, and
    against `Sampler`. Returns how many rows drew another token than `Sampler`."""
    cpu = torch.device("cpu")
    wide, batch = logits.to(cpu, torch.float32), to_device(batch, cpu)
    for row, token in enumerate(tokens.tolist()):
        _check_row(wide[row], batch.params[:, row], token, float(thresholds[row]), epsilon)
    oracle = Sampler().sample(wide, batch).token_ids
    parted = (oracle != tokens.cpu()).nonzero()[:, 0]
    if len(parted):
        found = Sampler().probabilities(wide, batch)[parted].double()
        edges = found.cumsum(-1)
        far = (edges - batch.uniforms[parted, None]).abs().amin(-1)
        moved = [_on_edge(wide[row], batch.params[:, row], epsilon) for row in parted.tolist()]
        assert ((far < epsilon) | torch.tensor(moved)).all(), (oracle[parted], tokens[parted.cpu()])
    return len(parted)


def _scores(logits: Tensor, params: Tensor) -> Tensor:
    """As the sampler has them, in float32: less the best, over the temperature."""
    return (logits - logits.max()) * params[0].reciprocal().float()


def _on_edge(logits: Tensor, params: Tensor, epsilon: float) -> bool:
    """Does top-p fall onto a boundary of what top-k leaves?"""
    scores = _scores(logits, params).sort(descending=True).values
    weights = scores.double().exp() * (scores >= _kth(scores, params))
    return bool(((weights.cumsum(-1) / weights.sum() - params[2]).abs() < epsilon).any())


def _kth(scores: Tensor, params: Tensor) -> float:
    """The lowest score that top-k keeps, of all scores in any order."""
    top_k = min(int(params[1]), len(scores))
    return float(scores.topk(top_k).values[-1]) if top_k else -math.inf


def _check_row(
    logits: Tensor, params: Tensor, token: int, threshold: float, epsilon: float
) -> None:
    best = logits.max()
    if not best.isfinite():
        assert token == -1
        return
    if params[0] == 0:
        assert token == int(logits.numpy().argmax()) and threshold == 0
        return
    scores = _scores(logits, params)
    weights, top_p = scores.double().exp(), float(params[2])
    # Top-k and min-p are exact; top-p keeps the fewest tokens whose mass reaches it.
    exact = max(_kth(scores, params), float(params[3].log().float()))
    if top_p == 1 or threshold == exact:
        assert threshold == exact
    else:
        assert threshold > exact and bool((scores == threshold).any())
    if top_p < 1:
        whole = weights[scores >= _kth(scores, params)].sum()
        if threshold > float(params[3].log().float()):
            assert weights[scores > threshold].sum() / whole < top_p + epsilon
        assert threshold == exact or weights[scores >= threshold].sum() / whole > top_p - epsilon
    # The inverse of the distribution function, in token order.
    kept = weights * (scores >= threshold)
    running = kept.cumsum(-1) / kept.sum()
    uniform, mine = float(params[7]), float(kept[token] / kept.sum())
    assert mine > 0
    assert running[token] - mine - epsilon < uniform < running[token] + epsilon
