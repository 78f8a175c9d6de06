"""Server-sent events, parsed as they arrive, however the network cuts them.

Follows the event stream format of the HTML standard (section 9.2): lines end with LF, CR LF or CR;
`data` lines of one event are joined by LF; a blank line ends the event; lines that begin with a
colon, and events that the stream breaks off, are dropped. Knows nothing about what the data mean.
"""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"


class SSEParser:
    """The events of one stream; feed it bytes, and it gives the data of each complete event."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._after_cr = False
        self._is_first_line = True

    def feed(self, piece: bytes) -> list[str]:
        """The data of the events that end in this piece, in order. Bytes that are not UTF-8 are
        replaced."""
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        if piece.endswith(b"\r"):
            self._after_cr = True
        *lines, rest = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events: list[str] = []
        for line in lines:
            self._line += line
            self._end_line(bytes(self._line), events)
            self._line.clear()
        self._line += rest
        return events

    def _end_line(self, line: bytes, events: list[str]) -> None:
        if self._is_first_line:
            line, self._is_first_line = line.removeprefix(_BOM), False
        if not line:
            if self._data:
                events.append(b"\n".join(self._data).decode("utf-8", "replace"))
                self._data = []
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
