"""Prompts in every usual form become one plain form; the rest is refused by its place."""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.inputs.conversations import parse_conversations, parse_each_conversation
from minserve.inputs.prompts import (
    PromptInput,
    check_arrival,
    check_priority,
    check_prompt_text,
    check_request_id,
    check_salt,
    parse_each,
    parse_prompt,
    parse_prompts,
)
from minserve.inputs.reading import as_list
from minserve.request import InvalidRequestError

MOST = 100


def texts(*values: str) -> list[PromptInput]:
    return [PromptInput(value, None) for value in values]


def ids(*values: list[int]) -> list[PromptInput]:
    return [PromptInput(None, value) for value in values]


@pytest.mark.parametrize(
    ("prompts", "found"),
    [
        ("hi", texts("hi")),
        ("", texts("")),
        ([1, 2], ids([1, 2])),
        ((1, 2), ids([1, 2])),
        (range(1, 3), ids([1, 2])),
        (array("q", [1, 2]), ids([1, 2])),
        (np.array([1, 2]), ids([1, 2])),
        (np.array([1, 2], dtype=np.uint16), ids([1, 2])),
        (torch.tensor([1, 2]), ids([1, 2])),
        ([np.int64(1), torch.tensor(2)], ids([1, 2])),
        (np.array([[1, 2], [3, 4]]), ids([1, 2], [3, 4])),
        (torch.tensor([[1, 2], [3, 4]]), ids([1, 2], [3, 4])),
        ({"prompt": "hi"}, texts("hi")),
        ({"prompt_token_ids": [1, 2]}, ids([1, 2])),
        ({"prompt_token_ids": np.array([1])}, ids([1])),
        ([{"prompt": "hi"}, {"prompt_token_ids": (1,)}], texts("hi") + ids([1])),
        (["a", [1], torch.tensor([2])], texts("a") + ids([1], [2])),
        (np.array(["a", "b"]), texts("a", "b")),
        ([], []),
        ((), []),
    ],
)  # fmt: skip
def test_every_usual_form_is_taken(prompts, found):
    parsed = parse_prompts(prompts, MOST)
    assert parsed == found
    for one in parsed:
        assert one.token_ids is None or all(type(token) is int for token in one.token_ids)
        assert one.text is None or type(one.text) is str


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        (b"hi", "prompts is bytes: decode it"),
        ([b"hi"], r"prompts\[0\] is bytes: decode it"),
        (None, "prompts=None: expected a prompt or a list"),
        (5, "prompts=5"),
        (["a", None], r"prompts\[1\]=None: expected a string, a list of token ids, or a dict"),
        ([None], r"prompt\[0\]=None: expected an integer"),
        ([[5.7, 6.2]], r"prompts\[0\]\[0\]=5.7: expected an integer"),
        ([5.7, 6.2], r"prompt\[0\]=5.7"),
        ([[5.0]], "write 5"),
        ([[1, True]], r"prompts\[0\]\[1\]=True"),
        ([True], r"prompt\[0\]=True"),
        ([1, "a"], r"prompt\[1\]='a'"),
        (["a", 1], r"prompts\[1\]=1"),
        ([[]], r"prompts\[0\] is empty: give at least one token id"),
        ([[[1]]], r"prompts\[0\]\[0\]=\[1\]"),
        ([[-1]], r"prompts\[0\]\[0\]=-1: expected an integer of at least 0"),
        ([2**64], "at most"),
        ({1, 2}, "expected a prompt or a list"),
        ((word for word in "ab"), "generator.*expected a prompt or a list"),
        ({}, "neither of 'prompt' and 'prompt_token_ids'"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "has both"),
        ({"prompt": "a", "multi_modal_data": 1}, "a key 'multi_modal_data', which nothing"),
        ([{"prompt": 5}], r"prompts\[0\]\['prompt'\]=5: expected a string"),
        ({"prompt": None}, "expected a string"),
        ({"prompt": b"a"}, "expected a string"),
        ({"prompt_token_ids": "ab"}, r"prompt\['prompt_token_ids'\]='ab'"),
        ({"prompt_token_ids": []}, "is empty"),
        ("\ud800", "without lone surrogates"),
        (["a", "b\udfff"], r"prompts\[1\]=.*without lone surrogates"),
        (np.array([1.0]), r"prompt\[0\]=1.0"),
        (np.zeros((2, 2)), r"prompts\[0\] is an array of float64"),
        (np.zeros((1, 1, 1), dtype=int), r"prompts\[0\] is an array of int64 and shape"),
        ([np.zeros(2)], r"prompts\[0\] is an array of float64"),
        (np.array([True]), "True"),
        (np.array(5), "expected a prompt or a list"),
        (torch.zeros(2, 2), "integers in one dimension"),
        (range(10**12), "items, and may have"),
        (range(10**30), "far too many items"),
        ([range(10**12)], r"admission.max_prompt_chars"),
        ([[1] * 101], r"prompts\[0\] has 101 items, and may have 100 \(admission.max_prompt_chars"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused_by_its_place(prompts, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        parse_prompts(prompts, MOST)


def test_a_long_text_is_refused_before_anything_reads_it():
    assert parse_prompt("x" * 100, 100).text
    start = time.perf_counter()
    with pytest.raises(InvalidRequestError) as caught:
        parse_prompt("\ud800 " * 10**7, 100)
    assert time.perf_counter() - start < 0.5
    sentence = str(caught.value)
    assert "20000000 characters" in sentence
    assert "admission.max_prompt_chars allows 100" in sentence and len(sentence) < 200
    with pytest.raises(InvalidRequestError, match="the rendered conversation has 101 characters"):
        check_prompt_text("x" * 101, 100, "the rendered conversation")


def test_ids_are_copied():
    given = [1, 2, 3]
    parsed = parse_prompt(given, MOST).token_ids
    given[0] = None
    assert parsed == [1, 2, 3]


USER = {"role": "user", "content": "hi"}


def test_a_conversation_or_a_list_of_them():
    assert parse_conversations([USER]) == ([[USER]], False)
    assert parse_conversations(([USER], (USER, USER))) == ([[USER], [USER, USER]], True)
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    assert parse_conversations([parts, call, USER])[0] == [[parts, call, USER]]


def test_messages_are_copied_to_their_depth():
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    [[copied]], _ = parse_conversations([message])
    message["content"][0]["text"] = message["role"] = None
    assert copied == {"role": "user", "content": [{"type": "text", "text": "hi"}]}


ENDLESS: list = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "messages is empty"),
        (None, "messages=None"),
        ("hi", "messages='hi'"),
        (b"hi", "messages is bytes"),
        (USER, "expected a conversation: a list of messages"),
        ([[]], r"messages\[0\] is an empty conversation"),
        ([[USER], USER], r"messages\[1\]=.*expected a conversation"),
        ([USER, [USER]], r"messages\[1\]=.*expected a message"),
        ([USER, 5], r"messages\[1\]=5"),
        ([{}], r"messages\[0\]\['role'\]=None: expected a string such as 'user'"),
        ([{"role": 1, "content": "a"}], r"\['role'\]=1"),
        ([{"role": "user"}], "has no 'content'"),
        ([{"role": "user", "content": 5}], r"\['content'\]=5: expected a string, a list of parts"),
        ([{"role": "user", "content": b"a"}], "as in JSON"),
        ([{"role": "user", "content": "\ud800"}], "without lone surrogates"),
        ([{"role": "user", "content": ["a"]}], "a list of parts"),
        ([{"role": "user", "content": ENDLESS}], "nested more than 16 levels"),
        ([{"role": "user", "content": "a", 5: 1}], "a key of"),
        ([{"role": "user", "content": "a", "x": object()}], "as in JSON"),
        ([USER, {"role": "user", "content": "x" * 200}], "more than the 100 characters"),
        ((m for m in [USER]), "expected a conversation"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_place(messages, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        parse_conversations(messages, 100)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_priority, [0, -5, np.int64(3)], [None, 1.0, "1", True, 2**63, [1], float("nan")]),
        (check_arrival, [None, 0, 1.5, -1.0], [float("nan"), float("inf"), "1", True, 10**400]),
        (check_request_id, ["a", "é" * 1024], ["", None, 5, b"a", "\ud800", "a" * 1025]),
        (check_salt, ["", "a", None], [5, b"a", "\ud800", "a" * 1025]),
    ],
)
def test_names_ranks_and_times_are_checked(check, good, bad):
    for value in good:
        check(value)
    for value in bad:
        with pytest.raises(InvalidRequestError, match="expected"):
            check(value)
    assert type(check_priority(np.int64(3))) is int
    assert check_salt(None) == ""


THINGS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 5),
        st.integers(),
        st.floats(),
        st.text(max_size=3),
        st.text(st.characters(categories=["Cs"]), max_size=2),
        st.binary(max_size=2),
        st.sampled_from([object(), np.zeros(2), np.arange(3), torch.ones(2, 2), {1}, USER]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["prompt", "prompt_token_ids", "role", "content"]), inner),
    ),
    max_leaves=8,
)


@settings(max_examples=300, derandomize=True)
@given(THINGS)
def test_anything_is_parsed_or_refused_in_a_sentence(thing):
    for parse in (lambda x: parse_prompts(x, MOST), parse_conversations):
        try:
            parse(thing)
        except InvalidRequestError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
    try:
        for one in parse_prompts(thing, MOST):
            assert (one.text is None) != (one.token_ids is None)
    except InvalidRequestError:
        pass


class Endless(list):
    """Says that it has three items, and has no end."""

    def __init__(self, item):
        super().__init__([item])

    def __len__(self):
        return 3

    def __iter__(self):
        return itertools.repeat(self[0])


class EndlessMapping(Mapping):
    def __len__(self):
        return 1

    def __getitem__(self, key):
        return "a"

    def __iter__(self):
        return itertools.repeat("prompt")


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    "read",
    [
        lambda: parse_prompts(Endless(5), MOST),
        lambda: parse_prompts(Endless("a"), MOST),
        lambda: parse_prompts({"prompt_token_ids": Endless(5)}, MOST),
        lambda: parse_prompts(EndlessMapping(), MOST),
        lambda: parse_prompts([np.broadcast_to(np.int64(0), (3, 10**12))], MOST),
        lambda: parse_prompts(np.broadcast_to(np.int64(0), (3, 10**12)), MOST),
        lambda: parse_conversations(Endless(USER)),
        lambda: parse_conversations([Endless(USER)]),
        lambda: parse_conversations([EndlessMapping()]),
        lambda: parse_conversations([USER | {"content": Endless({"type": "text"})}]),
        lambda: parse_conversations([USER | {"tools": Endless(1)}]),
        lambda: parse_conversations([USER | {"tools": EndlessMapping()}]),
        lambda: as_list(Endless(5), "priority", "a list of ranks", MOST),
    ],
)
def test_a_length_that_lies_is_not_believed(read):
    started = time.monotonic()
    with pytest.raises(InvalidRequestError):
        read()
    assert time.monotonic() - started < 2


def test_as_list_copies_what_has_an_order_and_names_what_has_none():
    given = [3, 1]
    assert as_list(given, "priority", "a list of ranks", 2) == given
    assert as_list(given, "priority", "a list of ranks", 2) is not given
    assert as_list(np.array([3, 1]), "priority", "a list of ranks", 2) == given
    for value, said in ((5, "expected a list of ranks"), ({1}, "expected"), ([1] * 3, "3 items")):
        with pytest.raises(InvalidRequestError, match=f"priority.*{said}"):
            as_list(value, "priority", "a list of ranks", 2)


class Boom(Exception):
    pass


def boom(*args, **kwargs):
    raise Boom


def evil(base, *names):
    """A value of a subclass of `base` whose methods `names` raise."""
    return type("Evil", (base,), dict.fromkeys(names, boom))


NESTED: list = []
for _ in range(5000):
    NESTED = [NESTED]

EVIL = [
    evil(object, "__getattr__", "__repr__", "__eq__", "__hash__", "__len__", "__iter__")(),
    evil(object, "__repr__", "__str__")(),
    type("EvilClass", (), {"__class__": property(boom)})(),
    evil(list, "__iter__", "__len__")([1]),
    evil(list, "__iter__")(["a"]),
    evil(list, "__repr__")([None]),
    evil(dict, "__iter__", "keys", "items", "values", "__getitem__", "__len__")(prompt="a"),
    evil(dict, "__getitem__", "items")(prompt="a"),
    evil(int, "__index__", "__int__", "__le__", "__lt__", "__eq__")(-1),
    10**5000,
    NESTED,
]


@pytest.mark.parametrize("which", range(len(EVIL)))  # pytest would compare the values themselves
@pytest.mark.parametrize(
    "read",
    [
        lambda value: parse_prompts(value, MOST),
        lambda value: parse_prompts([value, "x"], MOST),
        lambda value: parse_prompts([[1, value]], MOST),
        lambda value: parse_prompts({"prompt": value, "x": 1}, MOST),
        lambda value: parse_prompt({"prompt_token_ids": [value]}, MOST),
        lambda value: check_prompt_text(value, MOST),
        lambda value: parse_conversations(value),
        lambda value: parse_conversations([value]),
        lambda value: parse_conversations([USER | {"role": value}]),
        lambda value: parse_conversations([USER | {"content": [value]}]),
        lambda value: as_list(value, "params", "SamplingParams", MOST) and boom_refused(),
    ],
)
def test_what_a_strangers_object_raises_is_a_refusal(read, which):
    with pytest.raises(InvalidRequestError) as caught:
        read(EVIL[which])
    assert len(str(caught.value)) < 300


def boom_refused():
    raise InvalidRequestError("read, which is right as well")


def test_errors_that_are_returned_take_the_place_of_one_prompt_each():
    given = [*EVIL, "x"]
    found = parse_each(["x", *given], MOST)
    assert all(isinstance(each, InvalidRequestError) for each in found[1:-1])
    assert [found[0], found[-1]] == texts("x", "x")
    chats, many = parse_each_conversation([[USER], *([each] for each in EVIL)])
    assert many and chats[0] == [USER]
    assert all(isinstance(each, InvalidRequestError) for each in chats[1:])


def test_a_string_that_lies_about_itself_is_read_as_what_it_is():
    lying = evil(str, "__len__", "__iter__", "__eq__", "__str__", "__repr__", "encode", "isascii")
    assert parse_prompts(lying("abc"), MOST) == texts("abc")
    ((message,),), _ = parse_conversations([{"role": lying("user"), "content": lying("hi")}])
    assert [type(each) for each in message.values()] == [str, str]


def test_numbers_of_a_message_are_plain_numbers():
    values = [evil(int, "__str__", "__repr__")(3), evil(float, "__str__")(0.5), np.float64(2.5)]
    ((message,),), _ = parse_conversations([USER | {"args": values}])
    assert message["args"] == [3, 0.5, 2.5]
    assert [type(each) for each in message["args"]] == [int, float, float]
