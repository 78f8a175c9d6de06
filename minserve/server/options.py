"""What a server is told when it starts: where it listens, whom it serves, what it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass


class ServerError(RuntimeError):
    """A server that cannot start. The message says why, and what to do."""


@dataclass(frozen=True)
class ServerOptions:
    """Options of one server. Raises ServerError for values that cannot work."""

    host: str = "127.0.0.1"
    """This machine only. "0.0.0.0" listens on every interface: use an `api_key` then."""
    port: int = 8000
    """0: any free port."""
    served_model_name: str = ""
    """The name that clients use; "" for the name under which the model was loaded."""
    api_key: str | None = None
    """Clients have to send `Authorization: Bearer KEY`, except for `/health`. None: no key."""
    allow_origins: tuple[str, ...] = ()
    """Web pages of these origins may call the server (CORS); none by default."""
    max_body_bytes: int = 4 << 20
    """Larger requests are refused with status 413, before they are read."""
    body_timeout_s: float = 10.0
    """A request whose body takes longer to arrive is answered with status 408."""
    header_timeout_s: float = 10.0
    """A connection on which no complete request line and headers have come is closed."""
    send_timeout_s: float = 60.0
    """A stream is ended if its client takes nothing for so long."""
    request_timeout_s: float | None = None
    """Deadline of a request, from its arrival; a request may ask for a shorter one. None: none."""
    drain_s: float = 30.0
    """After SIGTERM, accepted requests have so long to finish."""
    price_per_hour: float | None = None
    """What the machine costs, in any currency: then /metrics tells the cost of tokens."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ServerError(f"port={self.port}: expected 0 to 65535")
        if self.api_key == "":
            raise ServerError("the API key is empty: give one, or none")
        for name in ("max_body_bytes", "body_timeout_s", "header_timeout_s", "send_timeout_s"):
            value = getattr(self, name)
            if not (0 < value < math.inf):
                raise ServerError(f"{name}={value}: expected a positive number")
        timeout = self.request_timeout_s
        if timeout is not None and not 0 < timeout < math.inf:
            raise ServerError(f"request_timeout_s={timeout}: expected a positive number, or None")
        price = self.price_per_hour
        if price is not None and not 0 < price < math.inf:
            raise ServerError(f"price_per_hour={price}: expected a positive number, or None")
        if not 0 <= self.drain_s < math.inf:
            raise ServerError(f"drain_s={self.drain_s}: expected a number from 0")
