"""The sampler draws what the textbook draws, whoever else is in the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling.oracle import assert_drawn_from, probabilities, request

from minserve.request import SamplingParams
from minserve.sampling import INVALID_TOKEN, Sampler, plan_sampling, sampler, uniforms

GREEDY = SamplingParams(temperature=0.0)
VOCAB = 12

sampling_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.0, 2.5]),
    top_k=st.sampled_from([0, 0, 1, 3, 7, 500]),
    top_p=st.sampled_from([1.0, 1.0, 0.05, 0.45, 0.83, 0.99]),
    min_p=st.sampled_from([0.0, 0.0, 0.03, 0.4, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.8, 1.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.1, -0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.37, -0.2]),
    logit_bias=st.sampled_from([{}, {}, {3: 2.5}, {1: -math.inf, 4: -1.0}]),
)
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=8)
requests = st.builds(
    request,
    sampling_params,
    seed=st.integers(-(2**63), 2**63 - 1),
    prompt=tokens.filter(len),
    output=tokens,
    sample_index=st.integers(0, 5),
)


def random_logits(rows: int, vocab: int, seed: int, spread: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * spread


def draw(logits: torch.Tensor, batch_of: list) -> list[int]:
    return Sampler().sample(logits, plan_sampling(batch_of)).token_ids.tolist()


@settings(deadline=None, max_examples=150)
@given(st.lists(requests, min_size=1, max_size=6), st.integers(0, 1000), st.booleans())
def test_probabilities_are_the_textbook_ones(batch, seed, tied):
    logits = random_logits(len(batch), VOCAB, seed)
    if tied:
        logits = logits.round()
    found = Sampler().probabilities(logits, plan_sampling(batch)).numpy()
    for row, each, chances in zip(logits.tolist(), batch, found, strict=True):
        np.testing.assert_allclose(chances, probabilities(row, each), atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(requests, min_size=1, max_size=5),
    st.sampled_from([VOCAB, 64, 1000]),
    st.sampled_from([0.02, 1.0, 3.0]),
    st.integers(0, 1000),
)
def test_tokens_are_the_inverse_of_the_textbook_distribution(batch, vocab, spread, seed):
    assert_inverse_of_textbook(random_logits(len(batch), vocab, seed, spread), batch)


def assert_inverse_of_textbook(logits: torch.Tensor, batch: list) -> None:
    """The first token whose cumulative textbook probability exceeds the row's uniform."""
    drawn = draw(logits, batch)
    for row, each, token in zip(logits.tolist(), batch, drawn, strict=True):
        chances = probabilities(row, each)
        if each.params.temperature == 0:
            assert token == chances.argmax()
            continue
        [uniform] = uniforms([each.seed], [each.sample_index], [len(each.token_ids)])
        running = chances.cumsum()
        assert chances[token] > 0
        assert running[token] - chances[token] - 1e-9 <= uniform < running[token] + 1e-9


FILTERED = [
    SamplingParams(),
    SamplingParams(top_k=3),
    SamplingParams(top_k=40, top_p=0.6),
    SamplingParams(top_k=40, top_p=0.999),
    SamplingParams(top_p=0.3),
    SamplingParams(top_p=0.97),
    SamplingParams(min_p=0.3),
    SamplingParams(top_p=0.9, min_p=0.01),
    SamplingParams(temperature=0.0),
]


@pytest.mark.parametrize("spread", [0.02, 1.5, 6.0])
@pytest.mark.parametrize("tied", [True, False])
def test_every_way_through_a_wide_vocabulary_draws_the_same_token(spread, tied):
    # Flat rows need a sort, peaked ones a look at a few chunks, tied ones more than they expect.
    logits = random_logits(len(FILTERED), 50_000, 9, spread)
    if tied:
        logits = (logits * 2).round() / 2
    batch = [request(params, seed=s) for s, params in enumerate(FILTERED)]
    assert_inverse_of_textbook(logits, batch)


DISTRIBUTIONS = {
    "temperature 1": SamplingParams(),
    "temperature 0.5": SamplingParams(temperature=0.5),
    "temperature 3": SamplingParams(temperature=3.0),
    "top-k": SamplingParams(top_k=4),
    "top-p": SamplingParams(top_p=0.7),
    "min-p": SamplingParams(min_p=0.1),
    "top-k, top-p, min-p": SamplingParams(temperature=1.5, top_k=8, top_p=0.9, min_p=0.05),
    "repetition": SamplingParams(repetition_penalty=1.8),
    "presence": SamplingParams(presence_penalty=1.5),
    "frequency": SamplingParams(frequency_penalty=0.6),
    "bias": SamplingParams(logit_bias={2: 1.5, 5: -math.inf}),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_have_the_textbook_frequencies(name, dtype):
    params, count = DISTRIBUTIONS[name], 8000
    row = random_logits(1, VOCAB, 3, spread=1.0)
    batch = [request(params, seed=s, prompt=[1, 2], output=[3, 3, 4]) for s in range(count)]
    drawn = draw(row.to(dtype).expand(count, -1), batch)
    counts = np.bincount(drawn, minlength=VOCAB)
    assert_drawn_from(counts, probabilities(row[0].tolist(), batch[0]))


@pytest.mark.parametrize("vary", ["position", "sample_index"])
def test_positions_and_samples_of_one_seed_are_independent_draws(vary):
    count, row = 8000, random_logits(1, VOCAB, 4, spread=1.0)
    batch = [request(SamplingParams(), sample_index=i) for i in range(count)]
    positions = list(range(1, count + 1))
    if vary == "position":
        batch = [batch[0]] * count
    else:
        positions = [1] * count
    plan = plan_sampling(batch, positions=positions)
    drawn = Sampler().sample(row.expand(count, -1), plan).token_ids.numpy()
    chances = probabilities(row[0].tolist(), batch[0])
    assert_drawn_from(np.bincount(drawn, minlength=VOCAB), chances)
    pairs = np.bincount(drawn[:-1] * VOCAB + drawn[1:], minlength=VOCAB**2)
    assert_drawn_from(pairs, np.outer(chances, chances).reshape(-1))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(requests, min_size=2, max_size=7),
    st.sampled_from([VOCAB, 130, 60_000]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([1, 1 << 17, 1 << 20]),
    st.integers(0, 100),
    st.data(),
)
def test_a_token_does_not_depend_on_the_rest_of_the_batch(batch, vocab, dtype, block, seed, data):
    logits = random_logits(len(batch), vocab, seed, spread=1.0).to(dtype)
    alone = [draw(logits[i : i + 1], [each])[0] for i, each in enumerate(batch)]
    order = data.draw(st.permutations(range(len(batch))))[: data.draw(st.integers(1, len(batch)))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_BLOCK", block)
        together = draw(logits[order], [batch[i] for i in order])
    assert together == [alone[i] for i in order]


@pytest.mark.parametrize("vocab", [10, 200_000])
def test_greedy_takes_the_lowest_of_equals(vocab):
    logits = torch.zeros(3, vocab)
    logits[1, [vocab // 2, vocab - 1]] = 1.0
    assert draw(logits, [request(GREEDY)] * 3) == [0, vocab // 2, 0]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
def test_the_coldest_temperatures_are_greedy(temperature):
    logits = random_logits(4, 50, 0).float()
    cold = [request(SamplingParams(temperature=temperature), seed=s) for s in range(4)]
    assert draw(logits, cold) == logits.argmax(dim=-1).tolist()


PARAMS_OF_ALL_PATHS = [
    GREEDY,
    SamplingParams(),
    SamplingParams(top_k=5),
    SamplingParams(top_p=0.8),
    SamplingParams(min_p=0.1),
    SamplingParams(top_k=5, top_p=0.8, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3),
]


@pytest.mark.parametrize("params", PARAMS_OF_ALL_PATHS)
@pytest.mark.parametrize("vocab", [20, 60_000])
@pytest.mark.parametrize("bad", ["nan", "all nan", "all -inf", "inf"])
def test_a_row_of_no_numbers_is_flagged_and_harms_no_other(params, vocab, bad):
    logits = random_logits(3, vocab, 5).float()
    batch = [request(params, seed=s) for s in range(3)]
    expected = draw(logits, batch)
    logits[1, 7 if bad in ("nan", "inf") else slice(None)] = float(bad.split()[-1])
    assert draw(logits, batch) == [expected[0], INVALID_TOKEN, expected[2]]
    mixed = [batch[0], batch[1], request(GREEDY)]
    assert draw(logits, mixed) == [expected[0], INVALID_TOKEN, int(logits[2].argmax())]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_tokens_are_all_banned_is_flagged(temperature):
    banned = SamplingParams(temperature=temperature, logit_bias=dict.fromkeys(range(4), -math.inf))
    assert draw(torch.zeros(2, 4), [request(banned), request(GREEDY)]) == [INVALID_TOKEN, 0]


@pytest.mark.parametrize("params", PARAMS_OF_ALL_PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_drawn_in_float32_and_left_unchanged(params, dtype):
    logits = random_logits(5, 3000, 6).to(dtype)
    before, batch = logits.clone(), [request(params, seed=s) for s in range(5)]
    assert draw(logits, batch) == draw(logits.float(), batch)
    assert torch.equal(logits, before)


def test_edits_leave_the_logits_unchanged():
    logits = random_logits(1, VOCAB, 6)
    before = logits.clone()
    draw(logits, [request(SamplingParams(repetition_penalty=2.0, logit_bias={1: 3.0}))])
    assert torch.equal(logits, before)


def test_tokens_tied_at_the_edge_of_top_k_and_top_p_all_stay():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.45)):
        found = Sampler().probabilities(logits, plan_sampling([request(params)]))
        assert (found[0] > 0).tolist() == [True, True, True, True, False]


def test_ties_beyond_the_first_look_are_still_kept_together():
    # 60,000 tokens with one leader, everyone else equal: top-k 5 must keep them all.
    logits = torch.zeros(1, 60_000)
    logits[0, 11] = 1.0
    drawn = set(
        draw(logits.expand(200, -1), [request(SamplingParams(top_k=5), s) for s in range(200)])
    )
    assert len(drawn) > 150


def test_top_p_is_a_share_of_what_top_k_leaves_even_when_its_edge_is_out_of_view():
    # One token of weight 1, one of 0.2, then 1,000 equals at the edge of top-k with 1 together,
    # and below them as much again: 0.4 of what top-k leaves is the first token alone.
    weights = torch.full((50_000,), 1.0 / 48_998, dtype=torch.float64)
    weights[:1002] = 0.001
    weights[0], weights[1] = 1.0, 0.2
    batch = [request(SamplingParams(top_k=5, top_p=0.4), s) for s in range(20)]
    batch.append(request(SamplingParams(top_p=0.4)))  # needs the mass of the whole row
    drawn = draw(weights.log().expand(21, -1), batch)
    assert set(drawn[:20]) == {0}
    assert_inverse_of_textbook(weights.log().expand(21, -1), batch)


def test_no_rows_give_no_tokens():
    assert draw(torch.zeros(0, 10), []) == []
