"""Reads request bodies with limits of size and time, before anything is parsed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from minserve.server.errors import ApiError
from minserve.server.options import ServerOptions

_CLOSE = {"Connection": "close"}


class LimitedRoute(APIRoute):
    """A route whose body is read by `read_body`; the limits are `app.state.options`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI's."""
        handle = super().get_route_handler()

        async def limited(request: Request) -> Response:
            if request.method == "POST":
                # `Request.body()` and `Request.json()` look there first.
                request._body = await read_body(request, request.app.state.options)
            return await handle(request)

        return limited


async def read_body(request: Request, options: ServerOptions) -> bytes:
    """The body. Raises ApiError: 415 for another content type, 413 if it is too large, 408 if it
    takes too long."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, f"Content-Type is {kind or 'missing'!r}: expected application/json", headers=_CLOSE
        )
    most = options.max_body_bytes
    told = request.headers.get("content-length", "")
    if told.isdigit() and int(told[:20]) > most:
        raise _too_large(most)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(options.body_timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise _too_large(most)
                parts.append(part)
    except TimeoutError:
        raise ApiError(
            408,
            f"the body did not arrive within {options.body_timeout_s:g} s: send it again",
            headers=_CLOSE,
        ) from None
    except ClientDisconnect:
        raise ApiError(400, "the client went away before its body was complete") from None
    return b"".join(parts)


def _too_large(most: int) -> ApiError:
    return ApiError(
        413, f"the body has more than {most} bytes: send a shorter prompt", headers=_CLOSE
    )
