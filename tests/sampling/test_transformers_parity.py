"""Filters and penalties keep the same tokens with the same probabilities as transformers'."""

from __future__ import annotations

import pytest
import torch
from sampling.oracle import request

from minserve.request import SamplingParams
from minserve.sampling import Sampler, plan_sampling

CASES = [
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"min_p": 0.07},
    {"repetition_penalty": 1.4},
    {"temperature": 1.4, "top_k": 30, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 0.9},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_those_of_transformers_processors(case, dtype):
    from transformers.generation import logits_process as hf

    makers = {  # in the order in which transformers applies them
        "repetition_penalty": hf.RepetitionPenaltyLogitsProcessor,
        "temperature": hf.TemperatureLogitsWarper,
        "top_k": hf.TopKLogitsWarper,
        "top_p": hf.TopPLogitsWarper,
        "min_p": hf.MinPLogitsWarper,
    }
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(2)).to(dtype) * 3
    seen = torch.randint(0, 500, (6, 40), generator=torch.Generator().manual_seed(3))
    scores = logits.clone()
    for name, make in makers.items():
        if name in case:
            scores = make(case[name])(seen, scores)
    expected = scores.softmax(dim=-1)

    params = SamplingParams(**case)
    batch = [request(params, prompt=row[:30], output=row[30:]) for row in seen.tolist()]
    found = Sampler().probabilities(logits, plan_sampling(batch))
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
