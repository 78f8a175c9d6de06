"""uvicorn's HTTP protocol with a limit of time for request lines and headers.

uvicorn limits how long a connection may be idle between requests, but not how slowly a request may
come: a client that sends a byte a minute would hold its connection for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """Closes a connection on which no complete head of a request arrives in time."""

    header_timeout_s = 10.0
    """Set by `with_timeout`."""
    _head_timer: asyncio.TimerHandle | None = None

    @classmethod
    def with_timeout(cls, seconds: float) -> type[PatientProtocol]:
        """This class with another limit."""
        return type("PatientProtocol", (cls,), {"header_timeout_s": seconds})

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._is_idle:
            self._await_head()
        super().data_received(data)
        if not self._is_idle:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.header_timeout_s, self._late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        if self._is_idle and not self.transport.is_closing():
            self.transport.close()
