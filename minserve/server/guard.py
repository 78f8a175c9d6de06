"""What every request passes first: a name for the log, the key, and whether the server still
accepts work."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minserve.clock import WallClock
from minserve.server.errors import ApiError, api_error
from minserve.server.options import ServerOptions

CLOCK = WallClock()
LOG = logging.getLogger("minserve.server")
_SANE_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_WITHOUT_KEY = ("/health",)
"""Load balancers ask."""
_WHILE_DRAINING = ("/metrics",)
"""What happens to the last requests is told too."""


class Guard:
    """ASGI middleware around the whole application; one for each server."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self._app = app
        self._key = options.api_key.encode() if options.api_key is not None else None
        self._drain_s = options.drain_s
        self.draining = False
        self._num_active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name
        start_s, status = CLOCK.now(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        self._num_active += 1
        self._idle.clear()
        try:
            refusal = self._refusal(scope["path"], headers)
            if refusal is not None:
                await refusal.response()(scope, receive, named)
            else:
                await self._app(scope, receive, named)
        except Exception as error:
            LOG.exception("request %s failed", name)
            if not status:
                await api_error(error).response()(scope, receive, named)
            else:
                raise
        finally:
            self._num_active -= 1
            if not self._num_active:
                self._idle.set()
            LOG.info(
                json.dumps(
                    {
                        "request_id": name,
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "seconds": round(CLOCK.now() - start_s, 6),
                        **scope["state"].get("log", {}),
                    }
                )
            )

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if self._key is not None and path not in _WITHOUT_KEY:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            # Compared in constant time, so that its duration tells nothing about the key.
            same = hmac.compare_digest(key.strip().encode("latin-1", "replace"), self._key)
            if scheme.lower() != "bearer" or not same:
                return ApiError(
                    401,
                    "no API key, or a wrong one: send the header Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        if self.draining and path not in _WHILE_DRAINING:
            again = str(max(1, round(self._drain_s)))
            headers_out = {"Retry-After": again, "Connection": "close"}
            return ApiError(503, "the server is stopping: ask another one", headers=headers_out)
        return None

    async def drained(self, timeout_s: float) -> bool:
        """Accept nothing more, and wait for the requests that were accepted; False if some are
        left after `timeout_s`."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return not self._num_active
