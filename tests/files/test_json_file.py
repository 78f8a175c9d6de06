"""The one reader of strangers' files: any content and any kind of file is a value or a sentence."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minserve.files.json_file import MAX_DEPTH, FileError, read_bytes, read_json, read_text


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ('{"a": 1', "Expecting"),
        ('{"a": 1} x', "Extra data"),
        ("[" * 100_000, "nested more than 64 levels"),
        ("[" * 70 + "]" * 70, "nested more than 64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 levels"),
        ("9" * 5_000, "an integer of 5,000 digits"),
        ("-" + "9" * 41, "an integer of 42 digits"),
        ("1e400", "beyond every floating-point number"),
        ("[NaN]", "NaN, which is no JSON number"),
        ("-Infinity", "-Infinity, which is no JSON number"),
        ('[{"a": 1, "b": 2, "a": 1}]', "names 'a' twice in one object"),
        (r'["\ud800"]', r"'\\ud800', half of a UTF-16 pair"),
        (r'{"\udc00": 1}', "half of a UTF-16 pair"),
        ("{}".encode("utf-16"), "byte order mark"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ("{}".encode("utf-16-le"), "Expecting"),
        (b'"\xff"', "byte 1 is not UTF-8"),
        (b'"\x00"', "Invalid control character"),
    ],
)
def test_content_that_is_no_strict_json_is_a_sentence(
    tmp_path: Path, content: bytes | str, reason: str
) -> None:
    path = written(tmp_path / "file.json", content)
    with pytest.raises(FileError, match=reason) as caught:
        read_json(path, what="a record")
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read as a record: ") and message.endswith(".")
    assert len(message) < 400 + len(str(path))


@pytest.mark.parametrize("inside", ["", "1", '"a"', "null", "1, [2]"])
@pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
def test_the_depth_limit_is_the_same_whatever_is_inside(
    tmp_path: Path, brackets: str, inside: str
) -> None:
    depth = MAX_DEPTH - (1 if "[" in inside else 0)
    inside = f"[{inside}]"
    content = brackets[:-1] * (depth - 1) + inside + brackets[-1] * (depth - 1)
    read_json(written(tmp_path / "file", content))
    with pytest.raises(FileError, match=f"nested more than {MAX_DEPTH} levels"):
        read_json(written(tmp_path / "file", brackets[:-1] + content + brackets[-1]))


@pytest.mark.parametrize(
    "kind", ["missing", "directory", "pipe", "socket", "device", "loop", "nul"]
)
def test_only_regular_files_are_opened_and_nothing_is_left_open(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = Path("it")
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "nul":
        path = Path("a\0b")
    before = os.listdir("/proc/self/fd")
    for read in (read_json, read_text, read_bytes):
        with pytest.raises(FileError, match=r"cannot be read as .*\.$"):
            read(path)
    assert os.listdir("/proc/self/fd") == before


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    written(tmp_path / "blob", '{"a": 1.5}')
    (tmp_path / "link").symlink_to("blob")
    assert read_json(tmp_path / "link") == {"a": 1.5}


def test_size_is_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FileError, match=r"1,099,511,627,776 bytes and 10 are allowed"):
        read_bytes(path, max_bytes=10)
    assert read_bytes(written(path, "0123456789"), max_bytes=10) == b"0123456789"
    with pytest.raises(FileError, match="11 bytes"):
        read_bytes(written(path, "0123456789a"), max_bytes=10)


def test_a_file_that_says_it_is_empty_is_read_only_up_to_the_cap() -> None:
    with pytest.raises(FileError, match="10 are allowed"):
        read_bytes("/proc/self/status", max_bytes=10)


def test_a_pair_of_escapes_is_a_character(tmp_path: Path) -> None:
    assert read_json(written(tmp_path / "file", r'["\ud83d\ude00"]')) == ["😀"]


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(JSON, st.data())
def test_values_come_back_as_written_and_damage_is_a_value_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, value: Any, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn.json"
    content = json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode()
    assert read_json(written(path, content)) == value
    at = data.draw(st.integers(0, len(content)))
    damaged = content[:at] + data.draw(st.binary(max_size=4)) + content[at + 1 :]
    try:
        read_json(written(path, damaged))
    except FileError as error:
        assert str(path) in str(error)
