"""Headers of GGUF files: what is read, and that each kind of damage is named in one sentence."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf_files import (
    ARRAY,
    BOOL,
    F16,
    F32,
    FLOAT32,
    INT32,
    Q4_0,
    STRING,
    UINT8,
    UINT64,
    File,
    Stored,
    dense,
    random_blocks,
    string,
    typed,
)

from minserve.files.gguf_file import KINDS, GGUFFile
from minserve.files.gguf_values import GGUFError

ONES = dense(np.ones((2, 3)))
GOOD = File(
    {"general.architecture": "llama", "llama.block_count": 2},
    {"a.weight": ONES, "b.weight": random_blocks((4, 32), Q4_0)},
)


def test_metadata_and_tensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = GOOD.but(
        metadata={
            "text": "héllo", "whole": 7, "small": (UINT8, 255), "big": (UINT64, 1 << 60),
            "negative": (INT32, -4), "real": 1e-5, "yes": True, "names": ["a", "", "ü"],
            "numbers": (INT32, [1, -2, 3]), "nested": struct.pack("<IIQ", ARRAY, ARRAY, 1)
            + struct.pack("<IQBB", BOOL, 2, 1, 0), "none": (STRING, []),
        },
    )  # fmt: skip
    read = GGUFFile.read(file.write(tmp_path / "m.gguf"))
    metadata = dict(read.metadata)
    assert metadata.pop("numbers").tolist() == [1, -2, 3]
    assert metadata == {
        "text": "héllo", "whole": 7, "small": 255, "big": 1 << 60, "negative": -4, "real": 1e-5,
        "yes": True, "names": ["a", "", "ü"], "nested": [[True, False]], "none": [],
    }  # fmt: skip
    content = file.content()
    a, b = read.tensors["a.weight"], read.tensors["b.weight"]
    assert (a.shape, a.kind.name, a.nbytes) == ((2, 3), "F32", 24)
    assert (b.shape, b.kind.name, b.nbytes) == ((4, 32), "Q4_0", 72)
    assert content[a.offset : a.offset + 24] == ONES.data
    assert content[b.offset : b.offset + 72] == random_blocks((4, 32), Q4_0).data


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_another_alignment_is_followed(tmp_path: Path, alignment: int) -> None:
    file = GOOD.but(metadata={"general.alignment": alignment}, alignment=alignment)
    read = GGUFFile.read(file.write(tmp_path / "m.gguf"))
    offset = read.tensors["b.weight"].offset
    assert offset % alignment == 0
    assert file.content()[offset : offset + 72] == random_blocks((4, 32), Q4_0).data


def nested(levels: int) -> bytes:
    """A key whose value nests arrays; the innermost is empty."""
    return string("deep") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * levels


HUGE = 1 << 62
DAMAGED = {
    "wrong magic": (GOOD.but(magic=b"GGML"), r"begins with b'GGML', and a GGUF file with b'GGUF'"),
    "version 1": (GOOD.but(version=1), r"has version 1: expected 2 or 3"),
    "version 4": (GOOD.but(version=4), r"has version 4: expected 2 or 3"),
    "big-endian": (GOOD.but(version=3 << 24), r"version 3 is stored big-endian"),
    "huge number of tensors": (
        GOOD.but(num_tensors=HUGE),
        r"counts 4,611,\S+ tensors, which take at least \S+ bytes: \d+ are left",
    ),
    "huge number of keys": (GOOD.but(num_keys=HUGE), r"counts 4,611,\S+ keys"),
    "one key too many": (GOOD.but(num_keys=3), r"not a readable GGUF file"),
    "one tensor too many": (GOOD.but(num_tensors=3), r"dimensions|needs \S+ bytes"),
    "huge string": (
        GOOD.but(extra_pairs=string("k") + struct.pack("<IQ", STRING, HUGE), num_keys=3),
        r"key 'k' needs 4,611,\S+ bytes at \d+, where its header ends",
    ),
    "huge array of strings": (
        GOOD.but(extra_pairs=string("k") + struct.pack("<IIQ", ARRAY, STRING, HUGE), num_keys=3),
        r"key 'k' counts 4,611,\S+ items, which take at least",
    ),
    "huge array of numbers": (
        GOOD.but(extra_pairs=string("k") + struct.pack("<IIQ", ARRAY, UINT8, HUGE), num_keys=3),
        r"key 'k' counts 4,611,\S+ items",
    ),
    "huge key": (GOOD.but(extra_pairs=struct.pack("<Q", HUGE), num_keys=3), r"a key needs"),
    "deep arrays": (
        GOOD.but(extra_pairs=nested(1000), num_keys=3),
        r"key 'deep' nests arrays more than 4 levels deep",
    ),
    "type of a value": (
        GOOD.but(metadata={"k": struct.pack("<I", 13)}), r"key 'k' has a value of type 13"
    ),
    "type of items": (
        GOOD.but(metadata={"k": struct.pack("<IIQ", ARRAY, 99, 1)}), r"'k' has items of type 99"
    ),
    "no boolean": (
        GOOD.but(metadata={"k": struct.pack("<IB", BOOL, 7)}), r"key 'k' is the byte 7: expected 0"
    ),
    "no number": (GOOD.but(metadata={"k": float("nan")}), r"key 'k' is nan: expected a finite"),
    "key not UTF-8": (
        GOOD.but(extra_pairs=string(b"\xff") + typed(1), num_keys=3), r"a key is not UTF-8"
    ),
    "value not UTF-8": (
        GOOD.but(metadata={"k": struct.pack("<I", STRING) + string(b"ab\xff")}),
        r"key 'k' is not UTF-8 \(byte \d+\)",
    ),
    "item not UTF-8": (
        GOOD.but(metadata={"k": (STRING, [b"\xc3"])}), r"key 'k' is not UTF-8"
    ),
    "tensor's name not UTF-8": (
        GOOD.but(tensors=[(b"\xff", ONES)]), r"a tensor's name is not UTF-8"
    ),
    "key twice": (
        GOOD.but(extra_pairs=string("llama.block_count") + typed(1), num_keys=3),
        r"key 'llama.block_count' is there twice",
    ),
    "tensor twice": (
        GOOD.but(tensors=[("a", ONES), ("a", ONES)]), r"tensor 'a' is there twice"
    ),
    "unknown type of tensor": (
        GOOD.but(tensors={"a": Stored((2, 3), 99, ONES.data)}),
        r"tensor 'a' has type 99: expected one of F32 \(0\), F16 \(1\)",
    ),
    "no dimensions": (GOOD.but(tensors={"a": Stored((), F32, b"")}), r"'a' has 0 dimensions"),
    "five dimensions": (
        GOOD.but(tensors={"a": Stored((1,) * 5, F32, b"\0" * 4)}), r"'a' has 5 dimensions"
    ),
    "empty dimension": (
        GOOD.but(tensors={"a": Stored((0, 3), F32, b"")}), r"'a' has shape \(0, 3\): expected"
    ),
    "overflowing shape": (
        GOOD.but(tensors={"a": Stored((1 << 32, 1 << 32), F32, b"")}), r"'a' has shape"
    ),
    "part of a block": (
        GOOD.but(tensors={"a": Stored((2, 33), Q4_0, b"\0" * 36)}),
        r"'a' has rows of 33 numbers: expected a multiple of 32, the block of Q4_0",
    ),
    "overlap": (
        GOOD.but(tensors={"a": ONES, "b": Stored((8,), F32, b"\0" * 32, offset=0)}),
        r"tensor '[ab]' begins at 0, where byte 32 of the data comes next",
    ),
    "hole": (
        GOOD.but(tensors={"a": ONES, "b": Stored((8,), F32, b"\0" * 32, offset=64)}),
        r"tensor 'b' begins at 64, where byte 32 of the data comes next",
    ),
    "beyond the end": (
        GOOD.but(tensors={"a": ONES, "b": Stored((8,), F32, b"\0" * 32, offset=1 << 50)}),
        r"tensor 'b' begins at 1,125,\S+, where",
    ),
    "misaligned": (
        GOOD.but(tensors={"a": Stored((2, 3), F32, ONES.data, offset=4)}),
        r"tensor 'a' begins at 4, no multiple of 32",
    ),
    "longer than the file": (
        GOOD.but(tensors={"a": Stored((100, 100), F16, b"\0" * 32)}),
        r"tensor 'a' ends at byte \S+, and the file has",
    ),
    "alignment 0": (GOOD.but(metadata={"general.alignment": 0}), r"general.alignment is 0"),
    "alignment 48": (GOOD.but(metadata={"general.alignment": 48}), r"general.alignment is 48"),
    "alignment of text": (GOOD.but(metadata={"general.alignment": "x"}), r"alignment is 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named_in_a_sentence(tmp_path: Path, name: str) -> None:
    file, expected = DAMAGED[name]
    path = file.write(tmp_path / "m.gguf")
    with pytest.raises(GGUFError, match=expected) as caught:
        GGUFFile.read(path)
    sentence = str(caught.value)
    assert str(path) in sentence and sentence.endswith(".") and "\n" not in sentence


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    content, path = GOOD.content(), tmp_path / "m.gguf"
    path.write_bytes(content)
    end = GGUFFile.read(path).tensors["b.weight"]
    for length in range(end.offset + end.nbytes):
        path.write_bytes(content[:length])
        with pytest.raises(GGUFError, match="not a readable GGUF file"):
            GGUFFile.read(path)


def test_what_is_no_ordinary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="no such file"):
        GGUFFile.read(tmp_path / "nowhere.gguf")
    with pytest.raises(GGUFError, match="it is a directory"):
        GGUFFile.read(tmp_path)
    pointer = tmp_path / "pointer.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(GGUFError, match="git lfs pull"):
        GGUFFile.read(pointer)


def test_a_claim_is_compared_with_the_file_before_memory_is_taken(tmp_path: Path) -> None:
    claims = [name for name in DAMAGED if "huge" in name]
    paths = [DAMAGED[name][0].write(tmp_path / f"{i}.gguf") for i, name in enumerate(claims)]
    tracemalloc.start()
    try:
        for path in paths:
            with pytest.raises(GGUFError):
                GGUFFile.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    rng = random.Random(3)
    content, path = GOOD.content(), tmp_path / "m.gguf"
    refused = 0
    for _ in range(1500):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 4])):
            damaged[rng.randrange(len(GOOD.header()))] = rng.choice([0, 1, 127, 128, 255])
        path.write_bytes(damaged)
        try:
            for tensor in GGUFFile.read(path).tensors.values():
                assert tensor.offset + tensor.nbytes <= len(content)
        except GGUFError:
            refused += 1
    assert 300 < refused < 1500


def test_sizes_of_blocks_are_those_of_the_gguf_package() -> None:
    constants = pytest.importorskip("gguf.constants")
    for number, kind in KINDS.items():
        known = constants.GGMLQuantizationType(number)
        assert (known.name, constants.GGML_QUANT_SIZES[known]) == (
            kind.name,
            (kind.numbers, kind.nbytes),
        )


def test_floats_are_the_decimals_that_their_authors_wrote(tmp_path: Path) -> None:
    file = GOOD.but(metadata={"a": (FLOAT32, 1e-5), "b": (FLOAT32, 1e6), "c": (FLOAT32, 0.1)})
    assert dict(GGUFFile.read(file.write(tmp_path / "m.gguf")).metadata) == {
        "a": 1e-5, "b": 1e6, "c": 0.1,
    }  # fmt: skip
