"""Sends one request to a server, and notes when each part of the answer arrived."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from minserve.bench.http.records import RequestRecord
from minserve.bench.http.sse import SSEParser
from minserve.bench.http.wire import (
    DONE,
    PATHS,
    Chunk,
    EndpointName,
    ServerError,
    error_text,
    read_chunk,
    shortened,
)

if TYPE_CHECKING:
    import httpx2

KEEP_ALIVE_S = 4.0
"""Idle connections are closed before servers do (uvicorn: after 5 s), because a request on a
connection that is being closed fails."""
CONNECT_S = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class PlayError(RuntimeError):
    """A server that cannot be played against at all. The message says why, and what to do."""


@dataclass(frozen=True)
class ServedModel:
    """The first model that a server lists."""

    name: str
    max_model_len: int | None
    """Longest request in tokens, if the server says it."""


class Client:
    """Connections to one server; use with `async with`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float | None = None,
        endpoint: EndpointName = "completions",
    ) -> None:
        """`url`: the server's, with or without /v1. `timeout_s`: for each request, from when it is
        sent until its end; None: no limit. Raises PlayError for a URL that is none."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PlayError(f"--url {url}: expected http://HOST:PORT")
        self.url = parts.geturl().rstrip("/").removesuffix("/v1")
        self._is_here = parts.hostname in LOOPBACK
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._path = PATHS[endpoint]
        self._http: httpx2.AsyncClient = self._connections()

    def _connections(self) -> httpx2.AsyncClient:
        try:
            import httpx2
        except ImportError:
            raise PlayError(
                "playing against a server needs httpx2: pip install 'minserve[server]'"
            ) from None
        limits = httpx2.Limits(
            max_connections=None,
            max_keepalive_connections=None,
            keepalive_expiry=KEEP_ALIVE_S,
        )
        return httpx2.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            limits=limits,
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            trust_env=not self._is_here,  # no proxy leads to this machine's own loopback
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def served_model(self) -> ServedModel:
        """The first model of `/v1/models`. Raises PlayError if there is no server, or no model."""
        import httpx2

        try:
            answer = await self._http.get("/v1/models", timeout=CONNECT_S)
        except httpx2.HTTPError as error:
            raise PlayError(
                f"no server answers at {self.url} ({named(error)}): start one, or give its --url"
            ) from None
        if answer.status_code != 200:
            raise PlayError(
                f"{self.url}/v1/models answered {answer.status_code}: {error_text(answer.content)}"
            )
        try:
            listed: Mapping[str, Any] = answer.json()["data"][0]
            longest = listed.get("max_model_len")
            return ServedModel(
                str(listed["id"]), longest if isinstance(longest, int) and longest > 0 else None
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise PlayError(
                f"{self.url}/v1/models lists no model: is it an OpenAI-compatible server? "
                "Otherwise name the model with --model"
            ) from None

    async def send(self, record: RequestRecord, body: bytes, now: Callable[[], float]) -> None:
        """Send one request, and fill in its record; whatever the server does is no exception."""
        import httpx2

        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(record, body, now)
        except TimeoutError:
            record.status = "timed_out"
            record.error = f"no end after {self._timeout_s} s"
        except httpx2.HTTPError as error:
            record.status, record.error = "failed", named(error)
        except (ServerError, ValueError) as error:
            record.status, record.error = "failed", str(error)
        if record.status != "completed":
            record.ended_s = now()

    async def _exchange(self, record: RequestRecord, body: bytes, now: Callable[[], float]) -> None:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        async with self._http.stream("POST", self._path, content=body, headers=headers) as answer:
            record.http_status = answer.status_code
            if answer.status_code != 200:
                text = error_text(await answer.aread())
                record.error = f"HTTP {answer.status_code}: {text}"
                record.status = "refused" if answer.status_code == 429 else "failed"
                record.retry_after_s = _seconds(answer.headers.get("retry-after"))
                return
            reading = _Reading(record)
            if answer.headers.get("content-type", "").startswith("application/json"):
                whole = (await answer.aread()).decode("utf-8", "replace")
                reading.take(read_chunk(whole), now())
                reading.is_done = True
            else:
                parser = SSEParser()
                async for piece in answer.aiter_bytes():
                    arrived_s = now()
                    for data in parser.feed(piece):
                        reading.event(data, arrived_s)
            reading.finish()


class _Reading:
    """The answer to one request while it arrives."""

    def __init__(self, record: RequestRecord) -> None:
        self._record = record
        self._texts: list[str] = []
        self._num_token_ids = 0
        self._usage: int | None = None
        self._last_s: float | None = None
        self.is_done = False

    def event(self, data: str, arrived_s: float) -> None:
        """One event of the stream; after the last one, nothing counts."""
        if self.is_done:
            return
        if data.strip() == DONE:
            self.is_done = True
        elif data.strip():
            self.take(read_chunk(data), arrived_s)

    def take(self, chunk: Chunk, arrived_s: float) -> None:
        """What an event says."""
        record = self._record
        if chunk.delivers:
            record.deliveries_s.append(arrived_s)
            self._texts.append(chunk.text)
            self._num_token_ids += chunk.num_token_ids
        if chunk.finish_reason is not None:
            record.finish_reason = chunk.finish_reason
        if chunk.delivers or chunk.finish_reason is not None:
            self._last_s = arrived_s
        if chunk.num_prompt_tokens is not None:
            record.num_prompt_tokens = chunk.num_prompt_tokens
        if chunk.num_output_tokens is not None:
            self._usage = chunk.num_output_tokens
        if record.first_token_s is None and (chunk.delivers or chunk.finish_reason is not None):
            record.first_token_s = arrived_s  # an answer may consist of tokens without a text
        record.num_output_tokens = self._usage or self._num_token_ids or len(record.deliveries_s)

    def finish(self) -> None:
        """The connection has ended. Raises ServerError if the answer had not."""
        record = self._record
        record.text = "".join(self._texts)
        if not self.is_done and record.finish_reason is None:
            raise ServerError("the answer broke off: it has neither a finish_reason nor [DONE]")
        if record.first_token_s is None:
            raise ServerError("the answer has no tokens")
        if self._usage is not None:
            record.num_output_tokens = self._usage
        record.is_estimated = self._usage is None and not self._num_token_ids
        record.status = "completed"
        record.ended_s = self._last_s  # usage and the end of the stream may come later


def named(error: BaseException) -> str:
    """An exception in a few words."""
    return shortened(f"{type(error).__name__}: {error}".removesuffix(": "))


def _seconds(text: str | None) -> float | None:
    """The seconds in a Retry-After header; it may also be a date, which says nothing here."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
