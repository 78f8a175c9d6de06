"""Sampling parameters are what their types say, copied, or refused in one sentence."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import pickle
from collections import UserDict
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.inputs.checks import shorten
from minserve.request import InvalidRequestError, SamplingParams

FIELDS = [item.name for item in dataclasses.fields(SamplingParams)]
INTEGERS = ["max_tokens", "min_tokens", "top_k", "n", "seed", "logprobs", "prompt_logprobs"]
NUMBERS = [
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
]  # fmt: skip
FLAGS = ["include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "detokenize"]


class Broken:
    """Raises wherever it is touched."""

    def __repr__(self):
        raise RuntimeError("no")

    __index__ = __float__ = __len__ = __iter__ = __bool__ = __eq__ = __repr__
    __hash__ = None


def refused(**values) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**values)
    sentence = str(caught.value)
    assert sentence.startswith(f"SamplingParams.{next(iter(values))}")
    assert "\n" not in sentence and len(sentence) < 300
    return sentence


@pytest.mark.parametrize("field", INTEGERS)
def test_integers_are_integers(field):
    for value in (5, np.int32(5), np.int64(5), np.array(5), torch.tensor(5), np.uint8(5)):
        made = getattr(SamplingParams(**{field: value}), field)
        assert made == 5 and type(made) is int
    for value in (
        2.5, True, np.True_, torch.tensor(True), "5", math.inf, math.nan, 10**400, -(10**400),
        2**63, Fraction(5), Decimal(5), 5j, [5], np.array([5]), torch.tensor([5]), b"5", Broken(),
        np.float32(5), object(),
    ):  # fmt: skip
        assert "expected" in refused(**{field: value})
    assert "write 2" in refused(**{field: 2.0})


@pytest.mark.parametrize("field", NUMBERS)
def test_numbers_are_finite_floats(field):
    for value in (1, np.float32(1), np.int64(1), torch.tensor(1.0), Fraction(1), Decimal(1)):
        made = getattr(SamplingParams(**{field: value}), field)
        assert made == 1.0 and type(made) is float
    for value in (
        math.nan, math.inf, -math.inf, 10**400, True, np.True_, "1", None, 1j, np.complex64(1),
        [1.0], np.array([1.0]), torch.tensor([1.0]), b"1", Broken(), Decimal("1e999"),
    ):  # fmt: skip
        assert "expected a finite number" in refused(**{field: value})


@pytest.mark.parametrize("field", FLAGS)
def test_flags_are_true_or_false(field):
    assert getattr(SamplingParams(**{field: np.False_}), field) is False
    for value in (0, 1, None, "yes", 1.0, [], Broken(), torch.tensor(True).numpy()[None]):
        assert "expected True or False" in refused(**{field: value})


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("max_tokens", [1, None, 2**63 - 1], [0, -1]),
        ("min_tokens", [0, 128], [-1, None]),
        ("temperature", [0, -0.0, 1e-300, 1e6], [-1e-9, 1e300]),
        ("top_k", [-1, 0, 1, 2**31 - 1], [-2, 2**31, None]),
        ("top_p", [1e-9, 1.0], [0.0, 1.0001, -0.5]),
        ("min_p", [0.0, 1.0], [-0.1, 1.1]),
        ("repetition_penalty", [1e-6, 1e6], [0.0, -1.0, 1e7]),
        ("presence_penalty", [-2, 2], [-2.1, 2.1]),
        ("frequency_penalty", [-2, 2], [-2.1, 2.1]),
        ("n", [1, 2**31 - 1], [0, 2**31]),
        ("seed", [-(2**63), 2**63 - 1, None], [-(2**63) - 1, 2**63]),
        ("logprobs", [-1, 0, None], [-2, 2**31]),
        ("prompt_logprobs", [-1, 0, None], [-2, 2**31]),
        ("cache_salt", ["", "a", None, "é" * 1024], ["\ud800", 5, b"a", "a" * 1025]),
    ],
)
def test_each_field_has_its_range(field, good, bad):
    for value in good:
        SamplingParams(**{field: value})
    for value in bad:
        refused(**{field: value})


def test_none_is_empty_and_minus_one_is_all():
    params = SamplingParams(
        logit_bias=None, stop=None, stop_token_ids=None, bad_words=None, cache_salt=None, top_k=-1
    )
    assert params == SamplingParams()
    assert SamplingParams(temperature=-0.0).temperature.hex() == (0.0).hex()


@pytest.mark.parametrize(
    "value",
    ["ab", ["ab"], ("ab",), {"ab"}, np.array(["ab"]), [np.str_("ab")]],
)
def test_stop_strings_take_every_usual_form(value):
    [stop] = SamplingParams(stop=value).stop
    assert stop == "ab" and type(stop) is str


@pytest.mark.parametrize("field", ["stop", "bad_words"])
def test_texts_are_texts(field):
    for value in (
        [""], ["a", None], [5], b"a", [b"a"], ["\ud800"], {"a": 1}, 5, iter(["a"]), [["a"]],
        Broken(), [Broken()],
    ):  # fmt: skip
        refused(**{field: value})


def test_bad_words_are_a_list_of_words():
    assert SamplingParams(bad_words=["a", " b"]).bad_words == ("a", " b")
    refused(bad_words="word")  # a list of four letters it is not
    refused(bad_words=[" \t"])


@pytest.mark.parametrize("field", ["stop_token_ids", "allowed_token_ids"])
def test_token_ids_are_integers(field):
    for value in (
        [5, 7], (5, 7), {7, 5}, range(5, 8, 2), np.array([5, 7]), torch.tensor([5, 7]),
        [np.int32(5), torch.tensor(7)], [5, 7, 5],
    ):  # fmt: skip
        made = getattr(SamplingParams(**{field: value}), field)
        assert made == (5, 7) and all(type(token) is int for token in made)
    for value in (
        5, "57", [5.0], [True], [-1], [2**31], [None], ["5"], {5: 1}, iter([5]), range(10**12),
        range(10**30), np.array([5.5]), np.array([True]), np.array([[5]]), np.array(5), Broken(),
        torch.tensor([0.5]),
    ):  # fmt: skip
        refused(**{field: value})
    assert "[1]=5.5" in refused(**{field: [5, 5.5]})


def test_allowing_no_token_is_refused():
    assert "None to allow all" in refused(allowed_token_ids=[])
    assert SamplingParams(stop_token_ids=[]).stop_token_ids == ()


def test_biases_are_numbers_by_token_and_minus_infinity_is_a_ban():
    given = {"5": 1, 3: -math.inf, np.int64(7): np.float32(0.5), 9: -(10**3)}
    made = SamplingParams(logit_bias=UserDict(given)).logit_bias
    assert made == {3: -math.inf, 5: 1.0, 7: 0.5, 9: -1000.0}
    assert all(type(t) is int and type(b) is float for t, b in made.items())
    for value in (
        [1], {5: None}, {5: math.nan}, {5: math.inf}, {5: 10**400}, {5: "1"}, {5: 1e31}, {5: True},
        {"a": 1}, {"": 1}, {"٥": 1}, {-1: 1}, {"-1": 1}, {1.0: 1}, {True: 1}, {None: 1}, {2**31: 1},
        {"9" * 5000: 1}, {5: 1, "5": 2}, "{}", 5, {5: Broken()},
    ):  # fmt: skip
        refused(logit_bias=value)


def test_what_is_changed_afterwards_changes_nothing():
    bias, stop, ids = {5: 1.0}, ["a"], np.array([1, 2])
    params = SamplingParams(logit_bias=bias, stop=stop, stop_token_ids=ids, allowed_token_ids=ids)
    bias[5], ids[0] = "x", 9
    stop.append(None)
    assert (params.logit_bias, params.stop, params.stop_token_ids) == ({5: 1.0}, ("a",), (1, 2))
    for change in (
        lambda d: d.update({1: 1.0}),
        lambda d: d.__setitem__(1, 1.0),
        lambda d: d.clear(),
        lambda d: d.pop(5),
        lambda d: d.__ior__({1: 2}),
    ):
        with pytest.raises(TypeError, match="cannot be changed"):
            change(params.logit_bias)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 3


def test_parameters_are_copied_sent_replaced_and_written_as_data_classes_are():
    params = SamplingParams(logit_bias={5: 1.0}, stop="a", allowed_token_ids=[1], top_k=3)
    for twin in (
        copy.copy(params),
        copy.deepcopy(params),
        pickle.loads(pickle.dumps(params)),
        dataclasses.replace(params),
    ):
        assert twin == params
        with pytest.raises(TypeError):
            twin.logit_bias[5] = 2.0
    assert dataclasses.replace(params, n=2) != params
    with pytest.raises(InvalidRequestError, match=r"SamplingParams.n=0"):
        dataclasses.replace(params, n=0)
    assert json.loads(json.dumps(dataclasses.asdict(params)))["logit_bias"] == {"5": 1.0}


def test_the_order_of_the_older_fields_is_kept():
    assert FIELDS[:4] == ["max_tokens", "min_tokens", "temperature", "top_k"]
    newest = ["cache_salt", "bad_words", "allowed_token_ids", "detokenize", "structured_outputs"]
    assert FIELDS[-5:] == newest


def test_fields_that_contradict_each_other_are_refused():
    with pytest.raises(InvalidRequestError, match="min_tokens=5 is larger than max_tokens=3"):
        SamplingParams(min_tokens=5, max_tokens=3)
    with pytest.raises(InvalidRequestError, match=r"detokenize=False .*\.stop .*stop_token_ids"):
        SamplingParams(stop="a", detokenize=False)
    assert not SamplingParams(stop_token_ids=[1], detokenize=False).detokenize


def test_a_value_is_shown_in_one_short_line():
    endless: list = []
    endless.append(endless)
    for value in (
        "x" * 10**6, list(range(10**5)), 10**5000, -(10**5000), endless, Broken(), [Broken()],
        np.zeros((1000, 1000)), torch.zeros(1000), {i: i for i in range(1000)}, "a\nb", object(),
        "\ud800" * 100,
    ):  # fmt: skip
        shown = shorten(value)
        assert len(shown) <= 600 and "\n" not in shown and shown.encode()


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(),
    st.text(max_size=5),
    st.text(st.characters(categories=["Cs"]), max_size=3),
    st.binary(max_size=5),
    st.fractions(),
    st.decimals(),
    st.complex_numbers(),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none()), max_size=4),
    st.dictionaries(
        st.one_of(st.integers(), st.text(max_size=3)), st.one_of(st.floats(), st.none())
    ),
    st.sampled_from(
        [Broken(), object(), SamplingParams, np.zeros(3), torch.ones(()), range(10**20), {1, "a"}]
    ),
)


@settings(max_examples=300, derandomize=True)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=4))
def test_any_construction_is_accepted_or_refused_in_a_sentence(values):
    try:
        params = SamplingParams(**values)
    except InvalidRequestError as error:
        assert str(error).startswith("SamplingParams.")
        return
    assert dataclasses.replace(params) == params


class Endless(list):
    """Says that it has three items, and has no end."""

    def __len__(self):
        return 3

    def __iter__(self):
        return itertools.repeat(5)


class EndlessDict(dict):
    def items(self):
        return ((token, 1.0) for token in itertools.count())


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "stop", "bad_words"])
def test_a_list_whose_length_lies_is_not_read_to_its_end(name):
    with pytest.raises(InvalidRequestError, match=f"{name}.*more items than"):
        SamplingParams(**{name: Endless([5])})


def test_a_mapping_whose_length_lies_is_not_read_to_its_end():
    with pytest.raises(InvalidRequestError, match=r"logit_bias.*more items than"):
        SamplingParams(logit_bias=EndlessDict({1: 1.0}))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids"])
def test_bytes_of_no_kind_are_token_ids(kind, name):
    with pytest.raises(InvalidRequestError, match="a list of token ids"):
        SamplingParams(**{name: kind(b"abc")})


def test_an_array_without_end_is_refused_before_it_is_unrolled():
    for shape in ((10**12,), (3, 10**12)):
        with pytest.raises(InvalidRequestError, match="stop_token_ids"):
            SamplingParams(stop_token_ids=np.broadcast_to(np.int64(0), shape))


@pytest.mark.parametrize(
    ("name", "limit"), [("top_k", 2**31 - 1), ("n", 2**31 - 1), ("max_tokens", 2**63 - 1)]
)
def test_a_sentence_says_a_limit_once(name, limit):
    with pytest.raises(InvalidRequestError, match=name) as caught:
        SamplingParams(**{name: 10**20})
    assert str(caught.value).count(str(limit)) == 1


def test_shorten_never_raises_and_is_never_long():
    def boom(*args):
        raise RuntimeError

    liar = type("Liar", (type,), {"__name__": property(boom)})("Thing", (), {"__repr__": boom})
    values = [liar(), 10**5000, type("X", (), {"__class__": property(boom)})(), "x" * 10**6]
    wide = type("Wide", (), {"dtype": "d" * 10**6, "ndim": 1, "shape": (1,)})()
    for value in [*values, wide]:
        assert 0 < len(shorten(value)) <= 60
