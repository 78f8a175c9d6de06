"""The counter-based random numbers: right, even, and independent of everything but their name."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling.oracle import assert_drawn_from

from minserve.sampling.random import philox, philox_many, uniforms

# Random123's own test vectors (kat_vectors, philox4x32-10).
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
words = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter, key, expected):
    assert philox(counter, key) == expected


@given(st.lists(st.tuples(*[words] * 6), min_size=1, max_size=30))
def test_philox_over_arrays_is_philox(rows):
    columns = np.array(rows, dtype=np.uint32).T
    many = philox_many(columns[:4], columns[4:])
    assert [tuple(column) for column in many.T.tolist()] == [philox(r[:4], r[4:]) for r in rows]


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), words, words), min_size=1, max_size=40))
def test_a_number_depends_on_its_name_alone(names):
    seeds, indices, positions = zip(*names, strict=True)
    together = uniforms(seeds, indices, positions)
    alone = [uniforms([s], [i], [p])[0] for s, i, p in names]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < 1)).all()


@pytest.mark.parametrize("varying", ["seed", "sample_index", "position", "stream"])
def test_numbers_are_even_and_uncorrelated_along_every_part_of_the_name(varying):
    count, name = 65536, {"seed": 7, "sample_index": 0, "position": 100}
    if varying == "stream":
        drawn = np.concatenate([uniforms([s], [0], [5], stream=s) for s in range(4096)])
    else:
        columns = {part: [value] * count for part, value in name.items()} | {varying: range(count)}
        drawn = uniforms(*(list(column) for column in columns.values()))
    bins = np.bincount((drawn * 64).astype(int), minlength=64)
    assert_drawn_from(bins, np.full(64, 1 / 64))
    pairs = (drawn[:-1] * 8).astype(int) * 8 + (drawn[1:] * 8).astype(int)
    assert_drawn_from(np.bincount(pairs, minlength=64), np.full(64, 1 / 64))
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / len(drawn) ** 0.5


def test_streams_are_different_numbers():
    named = ([3] * 20, [0] * 20, list(range(20)))
    assert not set(uniforms(*named, stream=0)) & set(uniforms(*named, stream=1))


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_numbers_have_53_bits(seed):
    drawn = uniforms([seed] * 64, [0] * 64, list(range(64))) * 2**53
    assert (drawn == np.floor(drawn)).all()
    assert (drawn % 2 == 1).any()
