"""One hook for what a request may draw: allowed tokens, bad words, and masks of one's own."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from sampling import oracle

from minserve.request import InvalidRequestError, Request, SamplingParams, TokenMask
from minserve.sampling import (
    INVALID_TOKEN,
    Sampler,
    make_masks,
    pack_tokens,
    plan_sampling,
    prepare_bad_words,
)

VOCAB = 30


class Words:
    """A tokenizer of single letters: 'a' is 1, ..., a blank and a letter together 27 and more."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        assert not add_special_tokens
        ids, spaced = [], False
        for letter in text:
            if letter == " ":
                spaced = True
                continue
            token = ord(letter) - ord("a") + 1
            ids.append(26 + token if spaced and token <= 3 else token)
            spaced = False
        return ids


def masked(params: SamplingParams, **values) -> Request:
    each = oracle.request(params, **values)
    return replace_masks(each, make_masks(params, Words()))


def replace_masks(each: Request, masks) -> Request:
    return Request(
        each.request_id,
        each.prompt_token_ids,
        each.params,
        0.0,
        each.seed,
        token_ids=each.token_ids,
        masks=tuple(masks),
    )


def chances(request: Request, logits: torch.Tensor, **plan) -> torch.Tensor:
    other = oracle.request(SamplingParams(temperature=0.5))
    batch = plan_sampling([other, request, other], **plan)
    found = Sampler().probabilities(logits.expand(3, -1).clone(), batch)
    alone = Sampler().probabilities(logits[None], plan_sampling([request], **plan))
    plain = Sampler().probabilities(logits[None], plan_sampling([other]))
    torch.testing.assert_close(found[1], alone[0], rtol=0, atol=0, equal_nan=True)
    for row in (0, 2):  # whoever has no mask draws as ever
        torch.testing.assert_close(found[row], plain[0], rtol=0, atol=0)
    return found[1]


def banned_by_hand(words: list[list[int]], output: list[int]) -> set[int]:
    """The last token of every word that the output would complete."""
    return {word[-1] for word in words if not word[:-1] or output[-(len(word) - 1) :] == word[:-1]}


@pytest.mark.parametrize("seed", range(40))
def test_what_is_drawn_is_what_a_textbook_would_draw_from_the_allowed_tokens(seed):
    rng = random.Random(seed)
    words = rng.sample(["a", "ab", "abc", "cab", "ba", "zz", "aa", " b", "aaa"], rng.randint(0, 4))
    allowed = rng.choice([None, rng.sample(range(VOCAB), rng.randint(3, 20))])
    params = SamplingParams(
        temperature=rng.choice([0.0, 1.0]),
        top_k=rng.choice([0, 3]),
        top_p=rng.choice([1.0, 0.8]),
        repetition_penalty=rng.choice([1.0, 1.7]),
        presence_penalty=rng.choice([0.0, 1.5]),
        logit_bias=rng.choice([{}, {1: 9.0, 2: -math.inf, 7: 3.0}]),
        bad_words=words,
        allowed_token_ids=allowed,
    )
    output = rng.choices([1, 2, 3, 27], k=rng.randint(0, 5))
    request = masked(params, prompt=[1, 2, 1], output=output)
    logits = torch.randn(VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sequences = [list(each) for each in prepare_bad_words(params, Words())]
    bans = banned_by_hand(sequences, output)
    bans |= set() if allowed is None else set(range(VOCAB)) - set(allowed)
    by_hand = oracle.request(
        # Banned last, behind biases and penalties: minus infinity survives both.
        replace(params, logit_bias={**params.logit_bias, **dict.fromkeys(bans, -math.inf)}),
        prompt=[1, 2, 1],
        output=output,
    )
    found = chances(request, logits)
    expected = torch.from_numpy(oracle.probabilities(logits.tolist(), by_hand))
    torch.testing.assert_close(found, expected)
    assert not found[list(bans)].any()


def test_words_are_banned_with_and_without_a_space_before_them_as_vllm_forms_them():
    params = SamplingParams(bad_words=["a", " ab", "z", "a"])
    assert prepare_bad_words(params, Words()) == ((1,), (27,), (1, 2), (27, 2), (26,))


def test_a_word_begun_in_the_prompt_is_not_the_models_to_avoid():
    request = masked(SamplingParams(temperature=0.0, bad_words=["ab"]), prompt=[1])
    assert plan_sampling([request]).bias_tokens.shape == (2, 0)
    request.token_ids.append(1)
    assert plan_sampling([request]).bias_tokens.tolist() == [[0], [2]]
    # The same request at an earlier place, as a verifier plans it.
    assert plan_sampling([request], positions=[1]).bias_tokens.shape == (2, 0)


@pytest.mark.parametrize(
    ("values", "needs"),
    [
        ({}, False),
        ({"allowed_token_ids": [1]}, False),
        ({"bad_words": ["a"]}, False),
        ({"bad_words": ["a", "ab"]}, True),
        ({"presence_penalty": 0.1}, True),
    ],
)
def test_only_what_reads_the_last_tokens_has_to_know_them(values, needs):
    assert masked(SamplingParams(**values)).needs_known_tokens is needs


def test_words_without_a_tokenizer_and_bans_of_everything_are_refused():
    with pytest.raises(InvalidRequestError, match="bad_words needs a tokenizer"):
        make_masks(SamplingParams(bad_words=["a"]), None)
    with pytest.raises(InvalidRequestError, match="ban all of allowed_token_ids"):
        make_masks(
            SamplingParams(bad_words=["z"], allowed_token_ids=[26, 3], logit_bias={3: -math.inf}),
            Words(),
        )
    assert make_masks(SamplingParams(), None) == ()


class Only:
    """A mask of one's own, as a grammar would be."""

    needs_known_tokens = True

    def __init__(self, *allowed: int, banned: tuple[int, ...] = ()) -> None:
        self.answer = TokenMask(pack_tokens(allowed), banned)

    def at(self, request: Request, tokens: Sequence[int]) -> TokenMask:
        return self.answer


def test_masks_are_intersected_whatever_their_widths():
    logits = torch.arange(VOCAB, dtype=torch.float64)
    params = SamplingParams(temperature=0.0)
    for masks, best in (
        ([Only(3, 29), Only(3, 5)], 3),
        ([Only(3, 5), Only(3, 29)], 3),
        ([Only(3, 29)], 29),
        ([Only(3, 29, banned=(29,))], 3),
        ([Only(0, 8)], 8),
        ([Only(5), Only(29)], None),
    ):
        request = replace_masks(oracle.request(params), masks)
        drawn = Sampler().sample(logits[None], plan_sampling([request])).token_ids.tolist()
        assert drawn == [INVALID_TOKEN if best is None else best]


@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 64, 1000])
def test_every_bit_stands_for_its_token(vocab):
    logits = torch.zeros(vocab)
    for token in {0, vocab // 2, vocab - 1}:
        params = SamplingParams(allowed_token_ids=[token])
        batch = plan_sampling([masked(params)])
        assert Sampler().sample(logits[None], batch).token_ids.tolist() == [token]


def test_blocks_of_rows_find_their_masks(monkeypatch):
    from minserve.sampling import sampler

    params = [SamplingParams(temperature=0.0, allowed_token_ids=[i % 5 + 1]) for i in range(9)]
    params[4] = SamplingParams(temperature=0.0)
    requests = [masked(each) for each in params]
    logits = torch.zeros(9, VOCAB)
    whole = Sampler().sample(logits, plan_sampling(requests)).token_ids.tolist()
    assert whole == [1, 2, 3, 4, 0, 1, 2, 3, 4]
    monkeypatch.setattr(sampler, "_BLOCK", 2 * VOCAB)
    assert Sampler().sample(logits, plan_sampling(requests)).token_ids.tolist() == whole


def test_log_probabilities_are_those_of_the_model_behind_the_mask():
    params = SamplingParams(temperature=0.0, logprobs=2, allowed_token_ids=[4])
    logits = torch.arange(VOCAB, dtype=torch.float64)[None]
    result = Sampler().sample(logits, plan_sampling([masked(params)]))
    assert result.token_ids.tolist() == [4]
    assert result.logprobs.top_token_ids.tolist() == [[29, 28]]
    assert float(result.logprobs.logprobs) == pytest.approx(float(logits.log_softmax(-1)[0, 4]))
