"""Requests that can never be served as asked are refused before they cost anything."""

from __future__ import annotations

import math
import time

import pytest
from engine.fakes import VOCAB, make_engine, run, tiny_spec

from minserve.config import EngineConfig, resolve
from minserve.engine.admission import check_request
from minserve.inputs.params import plain
from minserve.request import InvalidRequestError, SamplingParams

CONFIG = EngineConfig().with_values(
    {
        "device": "cpu",
        "admission.max_n": 4,
        "admission.max_stop_strings": 2,
        "admission.max_stop_chars": 5,
        "admission.max_stop_token_ids": 2,
        "admission.max_logit_biases": 3,
        "admission.max_bad_words": 2,
        "admission.max_logprob_entries": 5000,
    }
)
BANS = dict.fromkeys(range(VOCAB), -math.inf)


def check(params: SamplingParams, prompt=(1, 2), config=CONFIG, has_tokenizer=True):
    resolved = resolve(config, tiny_spec())
    return check_request("r", list(prompt), params, resolved, 128, has_tokenizer)


@pytest.mark.parametrize(
    ("allowed", "refused", "field"),
    [
        ({"n": 4}, {"n": 5}, "n asks for 5 samples, and admission.max_n allows 4"),
        ({"n": 4}, {"n": 2**31 - 1}, "admission.max_n allows 4"),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b", "c"]}, "admission.max_stop_strings"),
        ({"stop": "a" * 5}, {"stop": "a" * 6}, "admission.max_stop_chars allows 5"),
        ({"bad_words": ["a" * 5]}, {"bad_words": ["a" * 6]}, "admission.max_stop_chars"),
        ({"bad_words": ["a", "b"]}, {"bad_words": ["a", "b", "c"]}, "admission.max_bad_words"),
        ({"stop_token_ids": [1, 2]}, {"stop_token_ids": [1, 2, 3]}, "max_stop_token_ids"),
        (
            {"logit_bias": {1: 1, 2: 1, 3: 1}},
            {"logit_bias": {1: 1, 2: 1, 3: 1, 4: 1}},
            "logit_bias has 4 tokens, and admission.max_logit_biases allows 3",
        ),
        ({"logprobs": VOCAB - 60}, {"logprobs": VOCAB, "n": 4}, "max_logprob_entries"),
        ({"prompt_logprobs": VOCAB}, {"prompt_logprobs": VOCAB + 1}, "98 logprobs asked for"),
    ],
)
def test_each_cap_is_a_field_and_the_sentence_names_it(allowed, refused, field):
    check(SamplingParams(**allowed))
    with pytest.raises(InvalidRequestError, match="request r: ") as caught:
        check(SamplingParams(**refused))
    assert field in str(caught.value)


def test_the_whole_vocabulary_becomes_its_number():
    params = SamplingParams(max_tokens=3, logprobs=-1, prompt_logprobs=-1)
    found = check(params)
    assert (found.logprobs, found.prompt_logprobs) == (VOCAB, VOCAB)
    assert check(SamplingParams(logprobs=-1, max_tokens=3)).prompt_logprobs is None
    plain = SamplingParams(logprobs=2)
    assert check(plain) is plain


def test_the_whole_vocabulary_is_reported_through_the_engine():
    engine, _, _ = make_engine()
    [request] = engine.add(
        "a", [1, 2, 3], SamplingParams(max_tokens=2, temperature=0, logprobs=-1, prompt_logprobs=-1)
    )
    run(engine)
    assert request.params.logprobs == VOCAB
    assert len(request.logprobs) == 2 and len(request.prompt_logprobs) == 3


@pytest.mark.parametrize(
    "values",
    [
        {"logit_bias": BANS},
        {"allowed_token_ids": [5, 6], "logit_bias": {5: -math.inf, 6: -math.inf}},
        {"allowed_token_ids": [0], "min_tokens": 1},  # 0 ends the text
        {"allowed_token_ids": [0, 7], "stop_token_ids": [7], "min_tokens": 1},
    ],
)
def test_bans_that_leave_no_token_are_refused(values):
    config = CONFIG.with_values({"admission.max_logit_biases": 1000})
    with pytest.raises(InvalidRequestError, match=r"bans? all "):
        check(SamplingParams(**values), config=config)


@pytest.mark.parametrize(
    "values",
    [
        {"logit_bias": dict.fromkeys(range(1, VOCAB), -math.inf)},
        {"logit_bias": dict.fromkeys(range(VOCAB), -100.0)},
        {"allowed_token_ids": [0], "min_tokens": 0},
        {"allowed_token_ids": [0], "min_tokens": 1, "ignore_eos": True},
        {"allowed_token_ids": range(VOCAB)},
    ],
)
def test_bans_that_leave_a_token_are_not(values):
    config = CONFIG.with_values({"admission.max_logit_biases": 1000})
    check(SamplingParams(**values), config=config)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([], "the prompt is empty"),
        ([1, VOCAB], f"token id {VOCAB} in the prompt is outside"),
        ([1, -1], "token id -1"),
        ([1.5, 2], "not all 64-bit integers"),
        ([2**70], "not all 64-bit integers"),
        (["a"], "not all 64-bit integers"),
        ([None], "not all 64-bit integers"),
        ([[1], [1, 2]], "not all 64-bit integers"),
        ([1] * 128, "leaves no room for output"),
    ],
)
def test_prompts_that_are_no_tokens_of_the_model_are_refused(prompt, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        check(SamplingParams(), prompt)


def test_stop_strings_and_bad_words_need_a_tokenizer():
    with pytest.raises(InvalidRequestError, match="stop strings need a tokenizer"):
        check(SamplingParams(stop="x"), has_tokenizer=False)
    engine, _, _ = make_engine()
    with pytest.raises(InvalidRequestError, match="bad_words needs a tokenizer"):
        engine.add("a", [1], SamplingParams(bad_words=["x"]))
    assert not engine.has_work and engine.add("a", [1], SamplingParams())


def test_a_million_samples_are_refused_at_once():
    engine, _, _ = make_engine()
    start = time.perf_counter()
    with pytest.raises(InvalidRequestError, match=r"admission\.max_n allows 128"):
        engine.add("a", [1], SamplingParams(n=10**6))
    assert time.perf_counter() - start < 1.0
    assert not engine.has_work


def test_more_samples_than_places_wait_their_turn():
    engine, _, _ = make_engine(EngineConfig().with_values({"scheduling.max_num_seqs": 2}))
    requests = engine.add("a", [1, 2], SamplingParams(n=9, max_tokens=2, temperature=0))
    run(engine)
    assert all(request.finished for request in requests)


def test_the_longest_prompt_follows_the_longest_request():
    resolved = resolve(CONFIG, tiny_spec(max_position=100))
    assert resolved.max_prompt_chars == 3200
    capped = resolve(CONFIG.with_values({"admission.max_prompt_chars": 7}), tiny_spec())
    assert capped.max_prompt_chars == 7


class Unchecked(SamplingParams):
    def __post_init__(self):
        pass


class Computed(SamplingParams):
    """A property hides what was checked."""

    n = property(lambda self: 0, lambda self, value: None)

    def __post_init__(self):
        pass


WRONG = [
    ("n", 0), ("n", -1), ("temperature", "hot"), ("temperature", math.nan), ("seed", 1.5),
    ("stop", 5), ("logit_bias", {5: None}), ("max_tokens", 2.5), ("min_tokens", "x"),
    ("top_k", math.inf), ("logprobs", True), ("cache_salt", "\ud800"), ("allowed_token_ids", ()),
    ("repetition_penalty", None), ("bad_words", [5]), ("detokenize", None), ("ignore_eos", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_parameters_that_escaped_their_checks_are_checked_at_admission(name, value):
    with pytest.raises(InvalidRequestError, match=f"request r: SamplingParams.{name}"):
        check(Unchecked(**{name: value}))
    engine = make_engine()[0]
    with pytest.raises(InvalidRequestError):
        engine.add("r", [1, 2], Unchecked(**{name: value}))
    assert not engine.has_requests


def test_a_subclass_becomes_plain_parameters_and_plain_ones_stay_themselves():
    given = Unchecked(stop_token_ids=[3, 3], logit_bias={"5": 1})
    assert check(given) == SamplingParams(stop_token_ids=[3], logit_bias={5: 1.0})
    assert type(check(given)) is SamplingParams
    same = SamplingParams(n=2)
    assert check(same) is same and plain(same) is same


def test_parameters_without_fields_are_refused():
    sabotaged = SamplingParams()
    object.__setattr__(sabotaged, "n", 0)
    for params in (SamplingParams.__new__(SamplingParams), Computed(), sabotaged):
        with pytest.raises(InvalidRequestError, match="request r: "):
            check(params)


@pytest.mark.parametrize(
    "given", [None, 5, {"n": 1}, SamplingParams, 1 << 20000], ids=lambda value: type(value).__name__
)
def test_what_are_no_parameters_is_refused(given):
    with pytest.raises(InvalidRequestError, match="expected SamplingParams"):
        check(given)
    with pytest.raises(InvalidRequestError, match="expected SamplingParams"):
        plain(given)


def test_an_object_that_passes_itself_off_as_parameters_is_refused():
    for kind in (lambda self: SamplingParams, lambda self: 1 / 0):
        with pytest.raises(InvalidRequestError, match="expected SamplingParams"):
            check(type("Fake", (), {"__class__": property(kind)})())
