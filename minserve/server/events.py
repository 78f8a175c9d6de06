"""Server-sent events, and answers that end when their client goes away.

Knows nothing about what is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minserve.server.errors import ApiError, api_error

Made = TypeVar("Made")
DONE = "data: [DONE]\n\n"


class Gone(Exception):
    """The client has left before its answer was complete."""


def event(data: dict[str, Any]) -> str:
    """One event. ASCII, so that no line separator of Unicode can end it."""
    return f"data: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"


async def unless_gone(request: Request, work: Awaitable[Made]) -> Made:
    """The result of `work`. Cancels it, and raises Gone, when the client leaves first."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends events as they are made, and `[DONE]`. `close` is called at the end, however it
    comes: the last event, an error (told as an event), a client that leaves or takes nothing for
    `send_timeout_s`."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[str], close: Callable[[], None], send_timeout_s: float
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await unless_gone(Request(scope, receive), self._send_all(send))
        except Gone:
            pass
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for text in self._events:
                await self._send(send, text)
        except (Gone, asyncio.CancelledError):
            raise
        except Exception as error:
            told = error if isinstance(error, ApiError) else api_error(error)
            await self._send(send, event(told.body()))
        await self._send(send, DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, text: str) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        except TimeoutError:
            raise Gone from None
