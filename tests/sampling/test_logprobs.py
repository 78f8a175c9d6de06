"""Reported log probabilities are those of the model, whatever the request does to them."""

from __future__ import annotations

import pytest
import torch
from sampling.oracle import request

from minserve.request import SamplingParams
from minserve.sampling import (
    Sampler,
    logprobs,
    plan_sampling,
    prompt_logprobs,
    to_token_logprobs,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows_per_block", [1, 3, 100])
def test_prompt_logprobs_are_log_softmax(dtype, rows_per_block, monkeypatch):
    monkeypatch.setattr(logprobs, "_BLOCK", rows_per_block * 50)
    logits = torch.randn(7, 50).to(dtype)
    targets = torch.randint(0, 50, (7,))
    found = prompt_logprobs(logits, targets, num=4)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    expected = logits.to(working).log_softmax(dim=-1)
    torch.testing.assert_close(found.logprobs, expected.gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(found.top_logprobs, expected.topk(4).values)
    torch.testing.assert_close(expected.gather(1, found.top_token_ids), found.top_logprobs)
    for row, target, rank in zip(expected, targets, found.ranks, strict=True):
        assert rank == 1 + (row > row[target]).sum()


def test_drawn_tokens_report_the_raw_distribution_of_the_rows_that_ask():
    asks = SamplingParams(temperature=0.3, top_k=2, repetition_penalty=2.0, logprobs=3)
    batch = plan_sampling([request(SamplingParams()), request(asks), request(asks, 5)])
    logits = torch.randn(3, 20, dtype=torch.float64)
    result = Sampler().sample(logits, batch)
    assert batch.logprob_rows.tolist() == [1, 2]
    drawn = result.token_ids[1:]
    expected = logits.log_softmax(dim=-1)[1:]
    assert torch.allclose(result.logprobs.logprobs, expected.gather(1, drawn[:, None])[:, 0])
    assert result.logprobs.top_token_ids.shape == (2, 3)


def test_nobody_asks_nothing_is_computed():
    assert (
        Sampler().sample(torch.zeros(1, 5), plan_sampling([request(SamplingParams())])).logprobs
        is None
    )


def test_zero_asks_for_the_drawn_token_alone():
    batch = plan_sampling([request(SamplingParams(temperature=0.0, logprobs=0))])
    result = Sampler().sample(torch.tensor([[0.0, 1.0]]), batch)
    [record] = to_token_logprobs(result.logprobs, [1], [0])
    assert (record.token_id, record.rank, record.top) == (1, 1, ())


def test_records_list_each_row_its_own_number_equals_by_id():
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [3.0, 0.0, 0.0, 0.0]])
    found = prompt_logprobs(logits, torch.tensor([3, 0]), num=3)
    first, second = to_token_logprobs(found, [3, 0], [2, 1])
    assert [token for token, _ in first.top] == [1, 2] and first.rank == 3
    assert [token for token, _ in second.top] == [0] and second.rank == 1


def test_more_alternatives_than_tokens_are_all_tokens():
    assert prompt_logprobs(torch.zeros(1, 3), torch.tensor([0]), 10).top_logprobs.shape == (1, 3)


def by_hand(row: torch.Tensor, count: int) -> list[int]:
    """All tokens, likeliest first and equals by id, of which the first `count`."""
    values = row.double().tolist()
    return sorted(range(len(values)), key=lambda token: (-values[token], token))[:count]


def tied(rows: int, vocab: int, seed: int) -> torch.Tensor:
    """Logits with a handful of values, zeros of both signs and infinities."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (rows, vocab), generator=generator).to(torch.bfloat16)
    logits[0, ::7], logits[0, 1::7] = -0.0, 0.0
    logits[-1, ::2] = float("-inf")
    return logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("vocab", [1, 50, 3000])
def test_equal_logits_are_listed_by_token_id_however_many_are_asked_for(dtype, vocab):
    logits = tied(5, vocab, seed=vocab).to(dtype)
    for count in {0, 1, 2, 3, 20, vocab // 2 - 1, vocab // 2 + 1, vocab} - {-1}:
        found = prompt_logprobs(logits, torch.zeros(5, dtype=torch.int64), count)
        expected = [by_hand(row, count) for row in logits]
        assert found.top_token_ids.tolist() == expected, count


def test_a_device_orders_as_the_cpu_does():
    """By keys, without waiting for it: the CPU runs the same operators here."""
    logits = torch.cat([tied(4, 500, seed=1).float(), torch.randn(4, 500) * 1e30])
    for count in (1, 7, 499):
        by_key = logprobs._largest_on_device(logits, count)
        assert by_key.tolist() == [by_hand(row, count) for row in logits]
        assert torch.equal(by_key, logprobs._largest_on_cpu(logits, count))


@pytest.mark.parametrize("seed", range(10))
def test_alternatives_do_not_depend_on_what_neighbours_ask_for(seed):
    generator = torch.Generator().manual_seed(seed)
    # Logits one rounding apart: their log probabilities may be equal, their order is not.
    logits = 50 + torch.randint(0, 3, (4, 200), generator=generator) * 2.0**-18
    counts = torch.randint(0, 200, (4,), generator=generator).tolist()
    asked = [request(SamplingParams(temperature=0.0, logprobs=count)) for count in counts]
    batch = plan_sampling(asked)
    assert batch.logprob_counts == tuple(counts) and batch.num_logprobs == max(counts)
    result = Sampler().sample(logits, batch)
    together = to_token_logprobs(result.logprobs, result.token_ids.tolist(), batch.logprob_counts)
    for row, count in enumerate(counts):
        one = plan_sampling([asked[row]])
        alone = Sampler().sample(logits[row : row + 1], one)
        records = to_token_logprobs(alone.logprobs, alone.token_ids.tolist(), one.logprob_counts)
        assert records == [together[row]]
        assert len(together[row].top) == count


def test_rows_of_no_numbers_list_some_tokens_and_change_no_other():
    logits = torch.randn(4, 300)
    expected = prompt_logprobs(logits, torch.zeros(4, dtype=torch.int64), 6)
    for bad in (slice(None), slice(0, 3), slice(0, 299)):
        broken = logits.clone()
        broken[1, bad] = float("nan")
        found = prompt_logprobs(broken, torch.zeros(4, dtype=torch.int64), 6)
        for row in (0, 2, 3):
            assert torch.equal(found.top_token_ids[row], expected.top_token_ids[row])
        assert len(set(found.top_token_ids[1].tolist())) == 6
