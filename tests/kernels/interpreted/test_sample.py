"""The sampling kernel against its definition and against the torch sampler."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.drawn import batches, check_drawn, sampling_batch
from sampled import examples
from sampling.oracle import request

from minserve.batch import SamplingBatch
from minserve.kernels.triton.sample import sample
from minserve.request import SamplingParams
from minserve.sampling import Sampler, plan_sampling

EXAMPLES = examples(8, 3)
PLAIN = (1.0, 0, 1.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@given(drawn=batches([1, 2, 33, 700, 2049, 5000], most_rows=2))
@settings(max_examples=EXAMPLES, deadline=None)
def test_sampling_is_its_definition(
    dtype: torch.dtype, drawn: tuple[torch.Tensor, SamplingBatch]
) -> None:
    logits, batch = drawn[0].to(dtype), drawn[1]
    check_drawn(logits, batch, *sample(logits, batch))


def test_many_uniforms_draw_the_tokens_of_the_torch_sampler() -> None:
    rows = [(0.8, 0, 1.0, 0.0), (1.3, 7, 1.0, 0.0), (1.0, 0, 0.7, 0.0), (1.0, 30, 0.9, 0.02)] * 6
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(rows), 60, generator=generator) * 2
    uniforms = torch.rand(len(rows), generator=generator, dtype=torch.float64)
    batch = sampling_batch(rows, uniforms)
    # Uniforms that fall onto a boundary may part the two; none of these does.
    assert check_drawn(logits, batch, *sample(logits, batch)) == 0


@given(
    levels=st.lists(st.integers(-4, 0), min_size=1, max_size=60),
    top_k=st.integers(1, 70),
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_tokens_that_tie_at_the_edge_of_top_k_stay_together(levels: list[int], top_k: int) -> None:
    logits = torch.tensor([levels], dtype=torch.float32)
    batch = sampling_batch([(0.7, top_k, 1.0, 0.0)], torch.tensor([0.5], dtype=torch.float64))
    _, threshold = sample(logits, batch)
    kth = sorted(levels, reverse=True)[min(top_k, len(levels)) - 1] - max(levels)
    assert threshold.item() == (torch.tensor(1 / 0.7) * kth).item()


def test_uniforms_at_both_ends_draw_kept_tokens() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -50.0, 1.0, -math.inf]]).repeat(3, 1)
    ends = torch.tensor([0.0, 1 - 2**-53, 1 - 2**-53], dtype=torch.float64)
    batch = sampling_batch([PLAIN, PLAIN, (1.0, 0, 0.5, 0.0)], ends)
    assert sample(logits, batch)[0].tolist() == [1, 3, 3]


def test_the_coldest_and_the_flattest_rows() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0]])
    uniforms = torch.tensor([0.6, 0.9], dtype=torch.float64)
    batch = sampling_batch([(1e-300, 0, 0.9, 0.0), (1e30, 0, 1.0, 1.0)], uniforms)
    assert sample(logits, batch)[0].tolist() == [2, 3]


@pytest.mark.parametrize("vocab", [3, 5000])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_draw_nothing(vocab: int, temperature: float) -> None:
    logits = torch.zeros(4, vocab)
    logits[0, vocab - 1] = math.nan
    logits[1, 1] = math.inf
    logits[2] = -math.inf
    batch = sampling_batch([(temperature, 0, 1.0, 0.0)] * 4, torch.zeros(4, dtype=torch.float64))
    assert sample(logits, batch)[0].tolist() == [-1, -1, -1, 0]


def test_strided_rows_and_no_rows_at_all() -> None:
    wide = torch.randn(3, 50)
    batch = sampling_batch([(0.0, 0, 1.0, 0.0)] * 3, torch.zeros(3, dtype=torch.float64))
    assert sample(wide[:, :20], batch)[0].tolist() == wide[:, :20].argmax(-1).tolist()
    assert sample(torch.empty(0, 20), plan_sampling([]))[0].shape == (0,)


def test_edited_logits_feed_the_kernel_and_logprobs_stay() -> None:
    def kernel(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        return sample(logits, batch)[0]

    batch_of = [
        request(SamplingParams(**values), seed=index, prompt=(1, 2, 3))
        for index, values in enumerate(
            [
                {"temperature": 0.0, "logit_bias": {7: 100.0}, "logprobs": 2},
                {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.3, "logprobs": 0},
                {"temperature": 1.2, "top_k": 4, "logit_bias": {5: -math.inf}},
            ]
        )
    ]
    batch = plan_sampling(batch_of)
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(2))
    before = logits.clone()
    expected, got = Sampler().sample(logits, batch), Sampler(kernel).sample(logits, batch)
    assert torch.equal(got.token_ids, expected.token_ids) and torch.equal(logits, before)
    assert got.token_ids[0] == 7 and got.logprobs is not None and expected.logprobs is not None
    assert torch.equal(got.logprobs.logprobs, expected.logprobs.logprobs)
