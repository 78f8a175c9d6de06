"""An OpenAI-compatible HTTP server over `AsyncLLM`: `minserve serve`, or `Server` in a notebook.

The engine never imports this room, and runs in a thread of its own: routes only open streams and
read them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minserve.server.options import ServerError, ServerOptions
    from minserve.server.serving import Server, serve

_HOMES = {
    "Server": "serving",
    "ServerError": "options",
    "ServerOptions": "options",
    "serve": "serving",
}
__all__ = ["Server", "ServerError", "ServerOptions", "serve"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that metrics and `minserve serve --help` do not wait for FastAPI.
    if name not in _HOMES:
        raise AttributeError(f"module 'minserve.server' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"minserve.server.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
