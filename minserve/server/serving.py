"""A server that runs: in a thread of this process (`Server`), or as the process (`serve`).

Both bind their socket before the model is loaded, so that a taken port costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn
from starlette.middleware.cors import CORSMiddleware

from minserve.async_llm import AsyncLLM
from minserve.config import EngineConfig
from minserve.server.app import Service, make_app
from minserve.server.connection import PatientProtocol
from minserve.server.guard import Guard
from minserve.server.model import ServedModel
from minserve.server.options import ServerError, ServerOptions

LOG = logging.getLogger("minserve.server")
_LAST_S = 5.0
"""For connections to close after the last request has ended."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handlers, which raise the signal again after shutting down."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone."""
        yield


def bind(options: ServerOptions) -> socket.socket:
    """A socket that listens later. Raises ServerError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((options.host, options.port))
    except OSError as error:
        found.close()
        raise ServerError(
            f"{options.host}:{options.port} cannot be used ({error.strerror or error}): choose "
            "another port with --port, or 0 for any free one"
        ) from None
    return found


class Running:
    """One uvicorn over one engine; made and used inside its event loop."""

    def __init__(self, llm: AsyncLLM, name: str, options: ServerOptions) -> None:
        self._options = options
        self.service = Service(ServedModel(llm, name), options)
        self._guard = Guard(make_app(self.service), options)
        application: Any = self._guard
        if options.allow_origins:
            # Outside the guard: a browser asks without the key whether it may send it.
            application = CORSMiddleware(
                application,
                allow_origins=list(options.allow_origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
            )
        self.uvicorn = _Uvicorn(
            uvicorn.Config(
                application,
                http=PatientProtocol.with_timeout(options.header_timeout_s),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(_LAST_S),
            )
        )
        self._stopping: asyncio.Task[None] | None = None

    def stop(self, drain_s: float | None = None) -> None:
        """Begin to stop: refuse new requests, let the accepted ones finish within `drain_s`
        (None: the option's), abort the rest. A second call ends it at once."""
        if self._stopping is not None:
            self.service.end()
            self.uvicorn.should_exit = self.uvicorn.force_exit = True
            return
        seconds = self._options.drain_s if drain_s is None else drain_s
        self._stopping = asyncio.ensure_future(self._drain(seconds))

    async def _drain(self, seconds: float) -> None:
        if not await self._guard.drained(seconds):
            self.service.end()
            await self._guard.drained(_LAST_S)
        self.uvicorn.should_exit = True


class Server:
    """An engine behind HTTP, in a thread of this process: for notebooks and tests.

    `model` is a name or directory, or an `AsyncLLM`, which is then not closed with the server.
    A context manager; `start` returns when requests are answered. Raises ServerError, ConfigError
    and the errors of loading a model.
    """

    def __init__(
        self,
        model: str | Path | AsyncLLM,
        config: EngineConfig | None = None,
        options: ServerOptions | None = None,
    ) -> None:
        self.options = options or ServerOptions(port=0)
        self._socket = bind(self.options)
        self._owns = not isinstance(model, AsyncLLM)
        try:
            self.llm = (
                model if isinstance(model, AsyncLLM) else AsyncLLM(model, config, progress=False)
            )
        except BaseException:
            self._socket.close()
            raise
        self.name = self.options.served_model_name or served_name(model)
        self._running: Running | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="minserve-http", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens: `http://HOST:PORT`."""
        return url_of(self._socket)

    def start(self) -> Server:
        """Begin to answer requests; returns the server itself."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self.stop()
            raise ServerError(f"the server did not start: {self._failure}") from self._failure
        return self

    def metrics(self) -> dict[str, float]:
        """What `/metrics` tells now, by name; values with several labels are added up."""
        assert self._running is not None
        found: dict[str, float] = {}
        for family in self._running.service.metrics.registry.collect():
            for sample in family.samples:
                if not sample.name.endswith(("_bucket", "_created")):
                    found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def stop(self, drain_s: float = 0.0) -> None:
        """Let accepted requests finish within `drain_s`, abort the rest, and end the thread."""
        if self._thread.is_alive() and self._loop is not None and self._running is not None:
            self._loop.call_soon_threadsafe(self._running.stop, drain_s)
            self._thread.join(drain_s + 3 * _LAST_S)
        self._socket.close()
        if self._owns:
            self.llm.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running = Running(self.llm, self.name, self.options)
        await _serve_until_stopped(self._running, self._socket, self._ready.set)

    def __enter__(self) -> Server:
        return self if self._thread.is_alive() else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


async def _serve_until_stopped(
    running: Running, listening: socket.socket, ready: Callable[[], None]
) -> None:
    async def tell() -> None:
        while not running.uvicorn.started:
            await asyncio.sleep(0.005)
        ready()

    telling = asyncio.ensure_future(tell())
    try:
        await running.uvicorn.serve([listening])
    finally:
        telling.cancel()
        running.service.executor.shutdown(wait=False, cancel_futures=True)


def serve(
    model: str | Path, config: EngineConfig, options: ServerOptions, say: Callable[[str], None]
) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code, 0. A second signal stops at once.

    `say` gets the lines for the person who started it.
    """
    listening = bind(options)
    try:
        with AsyncLLM(model, config) as llm:
            name = options.served_model_name or served_name(model)

            async def main() -> None:
                running = Running(llm, name, options)
                loop = asyncio.get_running_loop()
                for number in (signal.SIGTERM, signal.SIGINT):
                    with contextlib.suppress(NotImplementedError):  # Windows
                        loop.add_signal_handler(number, running.stop)
                await _serve_until_stopped(
                    running,
                    listening,
                    lambda: say(f"{name} at {url_of(listening)}/v1 (Ctrl-C stops it)"),
                )

            asyncio.run(main())
    finally:
        listening.close()
    return 0


def served_name(model: Any) -> str:
    """The name of a model that was given none."""
    if isinstance(model, AsyncLLM):
        return model.trace.header.model or "model"
    text = str(model)
    return text if text.startswith("zoo/") or not Path(text).exists() else Path(text).name


def url_of(listening: socket.socket) -> str:
    """`http://HOST:PORT` of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
