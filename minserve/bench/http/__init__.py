"""Load over HTTP on any OpenAI-compatible server: ours, vLLM's, llama.cpp's.

`play` is the way in from Python (`player`); `minserve bench serve --url` plays drawn, recorded or
saved traffic with it. `sse` and `wire` read what comes back, `client` sends one request, `loops`
decides when each is sent, `records` keeps what happened to it.
"""

from minserve.bench.http.player import play
from minserve.bench.http.records import PlayResult, RequestRecord

__all__ = ["PlayResult", "RequestRecord", "play"]
