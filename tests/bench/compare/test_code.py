"""A code restores everything, and nothing but what `encode` writes is taken."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
import sampled
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.bench.compare.code import MOST_CODE, MOST_JSON, decode, encode
from minserve.bench.compare.errors import SetupError
from minserve.bench.compare.setup import Setup, Variant
from minserve.bench.compare.words import add_setup_arguments, command_line, setup_from
from minserve.bench.compare.workload import Workload
from tests.bench.compare.setups import setups


def packed(data, version=1):
    """A code of anything at all."""
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    return f"play{version}." + base64.urlsafe_b64encode(zlib.compress(text)).decode().rstrip("=")


@settings(max_examples=sampled.examples(400, 60), deadline=None)
@given(setups())
def test_a_code_restores_every_setup(setup):
    code = encode(setup)
    assert decode(code) == setup
    # As people paste it: broken into lines, with blanks around it.
    assert decode(f"  {code[:30]}\n{code[30:]} \n") == setup


@settings(max_examples=sampled.examples(400, 60), deadline=None)
@given(setups())
def test_the_command_line_says_every_setup(setup):
    import argparse
    import shlex

    words = shlex.split(command_line(setup))
    assert words[:3] == ["minserve", "bench", "compare"]
    parser = argparse.ArgumentParser()
    add_setup_arguments(parser)
    said = setup_from(parser.parse_args(words[3:]))
    for name in ("model", "base", "variants", "workload", "clock", "rounds", "names"):
        if name != "rounds" or setup.clock == "wall":
            assert getattr(said, name) == getattr(setup, name), name
    if setup.clock == "virtual":
        assert said.gpu == setup.gpu


def test_a_usual_setup_has_a_short_code():
    setup = Setup(
        base={"memory.kv_bytes": 64 << 20},
        variants=tuple(
            Variant(f"variant {n}", {"scheduling.max_num_seqs": n, "memory.prefix_cache": "radix"})
            for n in (1, 2, 3)
        ),
        workload=Workload("conversations", {"turns": 7, "count": 300}),
        clock="virtual",
    )
    assert len(encode(setup)) < 350


@settings(max_examples=sampled.examples(1000, 150), deadline=None)
@given(st.data())
def test_a_code_with_something_wrong_in_it_is_refused_in_a_sentence(data):
    code = encode(Setup(variants=(Variant("a", {"scheduling.policy": "static"}),)))
    place = data.draw(st.integers(0, len(code) - 1))
    letter = data.draw(st.sampled_from("abcXYZ019_-."))
    other = code[:place] + letter + code[place + 1 :]
    cut = code[: data.draw(st.integers(0, len(code) - 1))]
    for bad in (other, cut):
        try:
            found = decode(bad)
        except SetupError as error:
            assert str(error).strip() and "\n" not in str(error)
        else:
            assert found == decode(code), "a changed code means something else"


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["model", "base", "variants", "workload", "clock", "gpu", "rounds",
                             "name", "kind", "values", "rows", "prompts", "changes"]),
            inner, max_size=4,
        ),
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=sampled.examples(1000, 150), deadline=None)
@given(JSON)
def test_any_json_is_a_setup_or_refused_in_a_sentence(data):
    try:
        assert isinstance(decode(packed(data)), Setup)
    except SetupError as error:
        assert str(error).strip()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"base": {"memory.disk_path": "/etc"}}, "memory.disk_path cannot be set"),
        ({"base": {"device": "cuda:7"}}, "device cannot be set"),
        ({"base": {"memory.block_sise": 4}}, "did you mean 'memory.block_size'"),
        ({"base": {"memory.block_size": 10**6}}, "block_size"),
        ({"base": {"__class__": 4}}, "no field"),
        ({"rounds": 10**9}, "rounds=1000000000: expected a whole number from 1 to 9"),
        ({"rounds": True}, "rounds is True, expected a whole number"),
        ({"model": "x" * 1000}, "model: expected the name"),
        ({"model": "a\x00b"}, "model: expected the name"),
        ({"variants": [{"name": "v"}] * 4}, "4 variants: expected at most 3"),
        ({"variants": [{"name": "base"}]}, "the same name"),
        ({"variants": [{"name": "<b>\n"}]}, "a name of 1 to 40 characters"),
        ({"workload": {"kind": "independent", "values": {"count": 10**9}}}, "count=1,000,000,000"),
        ({"workload": {"kind": "independent", "values": {"cuont": 1}}}, "has no 'cuont'"),
        ({"workload": {"kind": "everything"}}, "there is no workload 'everything'"),
        ({"workload": {"kind": "listed", "rows": [[0, 4, 4, 0, 0, 2]]}}, "does not add up"),
        ({"workload": {"kind": "listed", "rows": [[0, 4, 4, 0, -1, 9]]}}, "does not add up"),
        ({"workload": {"kind": "prompts", "prompts": ["a" * 5000]}}, "your own prompts"),
        ({"gpu": {"name": "H9000"}}, "no GPU 'H9000' in the table"),
        ({"gpu": {"efficiency": 0}}, "efficiency=0: expected"),
        ({"gpu": {"bytes_per_s": 1e300}}, "bytes_per_s=1e+300"),
        ({"unknown": 1}, "unknown field 'unknown'"),
        (["a", "list"], "expected an object"),
        (b'{"rounds": 3, "rounds": 4}', "names 'rounds' twice"),
        (b'{"rounds": NaN}', "NaN"),
        (b"[" * 5000, "damaged"),
        (b"not json", "damaged"),
    ],
)  # fmt: skip
def test_what_a_hostile_code_asks_for_is_refused_in_a_sentence(data, said):
    with pytest.raises(SetupError) as refused:
        decode(packed(data))
    assert said in str(refused.value)
    assert str(refused.value).startswith("this code ")


def test_a_code_that_unpacks_to_more_than_a_setup_has_is_refused_before_it_is_read():
    with pytest.raises(SetupError, match="unpacks to more than 1,048,576 bytes"):
        decode(packed(b" " * (50 * MOST_JSON)))
    with pytest.raises(SetupError, match="at most 100,000 letters"):
        decode("play1." + "A" * MOST_CODE)


def test_a_code_of_another_version_names_both():
    with pytest.raises(SetupError, match="has version 7, and this lab reads version 1"):
        decode(packed({}, version=7))
