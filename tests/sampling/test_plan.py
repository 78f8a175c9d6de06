"""Requests to sampling batches: bans, histories, and the constant work that is not repeated."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sampling.oracle import request

from minserve.batch import SamplingBatch, to_device
from minserve.request import InvalidRequestError, Request, SamplingParams, TokenMask
from minserve.sampling import check_token_ids, pack_tokens, plan_sampling
from minserve.sampling.masks import BadWords

EOS = 9


def banned(params: SamplingParams, output: int, position: int | None = None) -> set[int]:
    each = request(params, prompt=[1, 2], output=[3] * output)
    plan = plan_sampling(
        [request(SamplingParams()), each],
        eos_token_ids=[EOS, 8],
        positions=None if position is None else [1, position],
    )
    assert set(plan.bias_tokens[0].tolist()) <= {1}
    pairs = zip(plan.bias_tokens[1].tolist(), plan.bias_values.tolist(), strict=True)
    return {token for token, value in pairs if value == -math.inf}


def test_what_ends_the_text_is_banned_until_min_tokens_are_there():
    params = SamplingParams(min_tokens=2, stop_token_ids=[5])
    assert banned(params, output=0) == banned(params, output=1) == {EOS, 8, 5}
    assert banned(params, output=2) == set()


def test_min_tokens_counts_tokens_in_flight():
    params = SamplingParams(min_tokens=2)
    assert banned(params, output=0, position=3) == {EOS, 8}
    assert banned(params, output=0, position=4) == set()


def test_ignored_end_of_sequence_tokens_are_not_banned():
    params = SamplingParams(min_tokens=2, ignore_eos=True, stop_token_ids=[5])
    assert banned(params, output=0) == {5}


def test_a_ban_wins_over_a_bias():
    params = SamplingParams(min_tokens=1, logit_bias={EOS: 50.0, 3: 1.0})
    assert banned(params, output=0) == {EOS, 8}


def history(each) -> dict[int, int]:
    plan = plan_sampling([request(SamplingParams()), each])
    assert set(plan.history[0].tolist()) <= {1}
    return dict(plan.history[1:].T.tolist())


def test_history_counts_output_and_names_prompt_tokens_and_follows_the_request():
    each = request(SamplingParams(repetition_penalty=1.1), prompt=[4, 4, 5], output=[5, 6, 6])
    assert history(each) == {4: 0, 5: 1, 6: 2}
    each.token_ids += [6, *range(100, 300)]
    assert history(each) == {4: 0, 5: 1, 6: 3} | dict.fromkeys(range(100, 300), 1)
    del each.token_ids[4:]
    assert history(each) == {4: 0, 5: 1}


MANY = {
    "temperature": 0.7,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.4,
    "min_tokens": 4,
    "stop_token_ids": [5],
    "logit_bias": {3: 1.0},
    "logprobs": 2,
}


class AfterItself:
    """Bans the newest token, and allows as many of the first tokens as there are known ones."""

    needs_known_tokens = True

    def at(self, request: Request, tokens: Sequence[int]) -> TokenMask:
        return TokenMask(pack_tokens(range(8 + len(tokens))), banned=[tokens[-1]])


def as_if_known(plan: SamplingBatch, row: int) -> dict[str, Any]:
    """Everything that a plan says about one row."""

    def of_row(rows: torch.Tensor, *values: torch.Tensor) -> Any:
        found = rows == row
        return sorted(zip(*(each[found].tolist() for each in values), strict=True))

    return {
        "params": plan.params[:, row].tolist(),
        "history": of_row(plan.history[0], plan.history[1], plan.history[2]),
        "biases": of_row(plan.bias_tokens[0], plan.bias_tokens[1], plan.bias_values),
        "mask": [
            np.unpackbits(bits.numpy(), bitorder="little").nonzero()[0].tolist()
            for bits in plan.mask_bits[plan.mask_rows == row]
        ],
        "reported": row in plan.logprob_rows.tolist(),
    }


@pytest.mark.parametrize("proposed", [(6,), (6, 6, 5), (7, 7, 8, 6, 7), (3,) * 9], ids=repr)
@pytest.mark.parametrize("output", [[], [5], [5, 6, 6]], ids=repr)
def test_a_row_after_proposed_tokens_is_planned_as_if_they_were_known(proposed, output):
    params = SamplingParams(**MANY)

    def known(tokens: Sequence[int]) -> Request:
        each = request(params, seed=3, prompt=[4, 4, 5], output=tokens)
        each.masks = (BadWords([(6, 9), (6, 6, 10), (8, 6, 7, 11)]), AfterItself())
        return each

    other, mine = request(SamplingParams()), known(output)
    rows = [other, mine, mine, mine]
    plan = plan_sampling(
        rows,
        eos_token_ids=[EOS],
        positions=[each.num_tokens for each in rows[:2]]
        + [mine.num_tokens + 1, mine.num_tokens + len(proposed)],
        proposed={2: proposed[:1], 3: proposed},
    )
    expected = plan_sampling(
        [other, mine, known([*output, proposed[0]]), known([*output, *proposed])],
        eos_token_ids=[EOS],
    )
    for row in range(len(rows)):
        assert as_if_known(plan, row) == as_if_known(expected, row)
    # Nothing of it stays with the request.
    assert as_if_known(plan_sampling([other, mine], eos_token_ids=[EOS]), 1) == as_if_known(plan, 1)


def test_only_penalised_rows_carry_a_history():
    assert plan_sampling([request(SamplingParams())]).history.shape == (3, 0)


def test_flags_regard_sampled_rows_only():
    odd = SamplingParams(temperature=0.0, top_k=5, top_p=0.5, min_p=0.1)
    plan = plan_sampling([request(odd), request(SamplingParams())])
    assert (plan.max_top_k, plan.uses_top_p, plan.uses_min_p, plan.needs_mass) == (0, 0, 0, 0)
    assert plan.num_greedy == 1 and not plan.needs_filter and not plan.all_greedy
    plan = plan_sampling([request(SamplingParams(top_k=5, top_p=0.5)), request(odd)])
    assert (plan.max_top_k, plan.uses_top_p, plan.needs_mass) == (5, True, False)


def test_a_plain_greedy_batch_is_built_once():
    greedy = [request(SamplingParams(temperature=0.0), s) for s in range(3)]
    assert plan_sampling(greedy) is plan_sampling(greedy)
    assert plan_sampling(greedy).all_greedy and plan_sampling([]).all_greedy


def test_shared_and_equal_parameters_give_the_same_batch():
    one = SamplingParams(top_k=3)
    shared = plan_sampling([request(one, s) for s in range(4)])
    equal = plan_sampling([request(SamplingParams(top_k=3), s) for s in range(4)])
    assert torch.equal(shared.params, equal.params)


def test_a_batch_travels():
    params = SamplingParams(presence_penalty=1.0, logprobs=2, logit_bias={1: 1.0})
    plan = plan_sampling([request(params)])
    copy = to_device(pickle.loads(pickle.dumps(plan)), torch.device("cpu"))
    assert torch.equal(copy.params, plan.params) and copy.num_logprobs == 2
    assert copy.logprob_rows.tolist() == [0]


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids", "allowed_token_ids"])
def test_tokens_that_the_model_does_not_have_are_refused(field):
    def naming(token: int) -> SamplingParams:
        return SamplingParams(**{field: {token: 1.0} if field == "logit_bias" else [token]})

    check_token_ids(naming(9), vocab_size=10)
    with pytest.raises(InvalidRequestError, match=f"{field} names token 10.* 0 to 9"):
        check_token_ids(naming(10), vocab_size=10)
