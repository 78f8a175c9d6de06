"""Server-sent events are the same however their bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minserve.bench.http.sse import SSEParser


def parsed(*pieces: bytes) -> list[str]:
    parser = SSEParser()
    return [data for piece in pieces for data in parser.feed(piece)]


line_ends = st.sampled_from(["\n", "\r\n", "\r"])
texts = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
noise = st.sampled_from([": a comment", ":", "event: message", "id: 7", "retry: 10", "other"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """The bytes of a stream, and the data of its events."""
    text, events = draw(st.sampled_from(["", "\ufeff"])), []
    for _ in range(draw(st.integers(0, 5))):
        lines = draw(st.lists(texts, min_size=1, max_size=3))
        for line in lines:
            if draw(st.booleans()):
                text += draw(noise) + draw(line_ends)
            space = " " if line.startswith(" ") else draw(st.sampled_from(["", " "]))
            text += f"data:{space}{line}" + draw(line_ends)
        # CR LF after CR would be one line end: a blank line needs its own.
        text += "\n" if not text.endswith("\r") else "\r"
        text += draw(st.sampled_from(["", "\n"]))
        events.append("\n".join(lines))
    return text.encode(), events


@given(streams(), st.data())
def test_any_cut_of_the_bytes_gives_the_same_events(
    stream: tuple[bytes, list[str]], data: st.DataObject
) -> None:
    content, events = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=12)))
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    assert parsed(content) == events
    assert parsed(*pieces) == events
    assert parsed(*(content[n : n + 1] for n in range(len(content)))) == events


@given(st.binary(max_size=80), st.integers(0, 80))
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", 8)
def test_bytes_that_are_no_stream_are_no_error_and_cut_alike(content: bytes, cut: int) -> None:
    assert parsed(content) == parsed(content[:cut], content[cut:])


@pytest.mark.parametrize(
    ("content", "events"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data:a\n\ndata:  b\n\n", ["a", " b"]),
        (b"data\n\n", [""]),
        (b"data: broken off", []),
        (b"data: broken off\n", []),
        (b"\n\n: ping\n\n", []),
        (b"event: x\n\n", []),
        (b"data: \xff\n\n", ["\ufffd"]),
        (b"data: a\r\rdata: b\r\n\r\n", ["a", "b"]),
        (b"database: a\n\n", []),
    ],
)
def test_what_the_standard_says(content: bytes, events: list[str]) -> None:
    assert parsed(content) == events
