"""`StructuredOutputs`: one form, checked and copied where it enters."""

from __future__ import annotations

import collections
import copy
import pickle
from types import MappingProxyType

import pytest

from minserve import InvalidRequestError, SamplingParams, StructuredOutputs
from minserve.inputs.params import plain


def test_exactly_one_form_is_given():
    with pytest.raises(InvalidRequestError, match="no form: give exactly one of json, regex"):
        StructuredOutputs()
    with pytest.raises(InvalidRequestError, match="has regex and json_object: give exactly one"):
        StructuredOutputs(regex="a", json_object=True)
    for kind, value in (("json", {}), ("regex", "a"), ("choice", ["a"]), ("grammar", "start: /a/"),
                        ("json_object", True)):  # fmt: skip
        assert StructuredOutputs(**{kind: value}).kind == kind


def test_a_schema_is_kept_as_json_whatever_mapping_it_was():
    schema = {"type": "object", "properties": {"é": {"type": "string"}}}
    given = collections.OrderedDict(schema, properties=MappingProxyType(schema["properties"]))
    made = StructuredOutputs(json=given)
    assert made.json == '{"type": "object", "properties": {"é": {"type": "string"}}}'
    assert StructuredOutputs(json=made.json) == made
    assert hash(made) == hash(pickle.loads(pickle.dumps(made))) == hash(copy.deepcopy(made))
    schema["properties"].clear()
    assert "é" in made.json


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"json": "{"}, r"StructuredOutputs\.json='\{': expected a JSON schema.*not JSON"),
        ({"json": "[1]"}, "a mapping, or the JSON of one"),
        ({"json": [1]}, "a mapping, or the JSON of one"),
        ({"json": {"const": {1, 2}}}, "set is no JSON value"),
        ({"json": {"const": float("nan")}}, "not JSON"),
        ({"json": '{"a": ' + 99 * "[" + 99 * "]" + "}"}, "at most 64 levels"),
        ({"json": '{"a": ' + 10**6 * "["}, "expected"),
        ({"json": {"a": "\ud800"}}, "surrogates"),
        ({"regex": ""}, "not empty"),
        ({"regex": b"a"}, "expected a string"),
        ({"choice": "abc"}, "a list of strings"),
        ({"choice": []}, "1 to 4096 strings, not 0"),
        ({"choice": ["a", ""]}, r"StructuredOutputs\.choice\[1\]"),
        ({"choice": [str(n) for n in range(5000)]}, "1 to 4096 strings, not 5000"),
        ({"grammar": " "}, "not blank"),
        ({"json_object": 1}, "True or False"),
        ({"regex": "a", "disable_any_whitespace": True}, "is about JSON, and this is regex"),
    ],
)
def test_what_is_no_form_is_refused_in_a_sentence(values, told):
    with pytest.raises(InvalidRequestError, match=told) as caught:
        StructuredOutputs(**values)
    assert len(str(caught.value)) < 400


def test_a_schema_that_contains_itself_is_refused():
    schema: dict = {}
    schema["items"] = schema
    with pytest.raises(InvalidRequestError, match=r"StructuredOutputs\.json"):
        StructuredOutputs(json=schema)


def test_parameters_take_a_form_and_nothing_that_looks_like_one():
    form = StructuredOutputs(choice=["b", "a", "b"])
    assert form.choice == ("b", "a")
    params = SamplingParams(structured_outputs=form)
    assert plain(params) is params and pickle.loads(pickle.dumps(params)) == params
    for other in ({"regex": "a"}, "a", StructuredOutputs):
        with pytest.raises(InvalidRequestError, match=r"SamplingParams\.structured_outputs"):
            SamplingParams(structured_outputs=other)
    with pytest.raises(InvalidRequestError, match=r"ignore_eos .* leave out one"):
        SamplingParams(structured_outputs=form, ignore_eos=True)


def test_an_object_whose_checks_never_ran_is_checked():
    class Own(StructuredOutputs):
        def __post_init__(self) -> None: ...

    unchecked = Own(regex="a", json_object=True)
    with pytest.raises(InvalidRequestError, match="exactly one"):
        SamplingParams(structured_outputs=unchecked)
    with pytest.raises(InvalidRequestError, match="structured_outputs"):
        SamplingParams(structured_outputs=object.__new__(StructuredOutputs))
    made = SamplingParams(structured_outputs=Own(regex="a")).structured_outputs
    assert type(made) is StructuredOutputs
