"""A small OpenAI-compatible server whose every answer is planned by the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

Send = Callable[[dict[str, Any]], Awaitable[None]]
Plan = Callable[["Asked", "Answer"], Awaitable[None]]


class Asked:
    """What one request asked for."""

    def __init__(self, scope: dict[str, Any], body: dict[str, Any]) -> None:
        self.path: str = scope["path"]
        self.headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        self.body = body


class Answer:
    """Writes one answer, piece by piece."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def start(self, status: int = 200, kind: str = "text/event-stream", **more: str) -> None:
        headers = [(b"content-type", kind.encode())]
        headers += [(k.replace("_", "-").encode(), v.encode()) for k, v in more.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def raw(self, piece: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    async def event(self, data: object) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        await self.raw(f"data: {text}\n\n".encode())

    async def token(self, text: str, finish_reason: str | None = None) -> None:
        await self.event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})

    async def usage(self, prompt: int, completion: int) -> None:
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        await self.event({"choices": [], "usage": usage})

    async def end(self) -> None:
        await self.event("[DONE]")
        await self.raw(b"", more=False)

    async def whole(self, status: int, body: object, **more: str) -> None:
        await self.start(status, "application/json", **more)
        await self.raw(json.dumps(body).encode(), more=False)


async def as_asked(asked: Asked, answer: Answer) -> None:
    """As many tokens as were asked for, one a piece."""
    await answer.start()
    for number in range(asked.body["max_tokens"]):
        last = number == asked.body["max_tokens"] - 1
        await answer.token(f" {number}", "length" if last else None)
    await answer.usage(len(asked.body["prompt"]), asked.body["max_tokens"])
    await answer.end()


class FakeServer:
    """Runs in a thread; `asked` has every request, in the order in which they came."""

    def __init__(self, plan: Plan = as_asked, models: object = None) -> None:
        self.plan = plan
        self.models = models or {"data": [{"id": "fake", "max_model_len": 64}]}
        self.asked: list[Asked] = []
        self.num_open = self.most_open = 0
        self.gone = 0
        """Clients that left before their answer had ended."""
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            self._serve, log_level="critical", lifespan="off", interface="asgi3"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    async def _serve(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        answer = Answer(send)
        if scope["path"] == "/v1/models":
            await answer.whole(200, self.models)
            return
        asked = Asked(scope, json.loads(body))
        self.asked.append(asked)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        planned = asyncio.create_task(self._planned(asked, answer))
        left = asyncio.create_task(receive())
        try:
            await asyncio.wait({planned, left}, return_when=asyncio.FIRST_COMPLETED)
            if not planned.done():
                self.gone += 1
                planned.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await planned
        finally:
            self.num_open -= 1
            left.cancel()

    async def _planned(self, asked: Asked, answer: Answer) -> None:
        await self.plan(asked, answer)

    def __enter__(self) -> FakeServer:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            threading.Event().wait(0.005)
        return self

    def __exit__(self, *ignored: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def serving(plan: Plan = as_asked, **options: Any) -> Iterator[FakeServer]:
    with FakeServer(plan, **options) as server:
        yield server
