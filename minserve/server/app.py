"""The routes. `make_app` gives an ASGI application over one engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from minserve import __version__
from minserve.clock import WallClock
from minserve.engine.recovery import EngineError
from minserve.frontend.thread.inbox import EngineClosedError
from minserve.request import InvalidRequestError
from minserve.server.body import LimitedRoute
from minserve.server.completions import Chat, Completion, Exchange
from minserve.server.errors import ApiError, api_error, on_error, on_http, on_validation
from minserve.server.events import EventStream, Gone, unless_gone
from minserve.server.generation import Generation, collect
from minserve.server.metrics import EngineMetrics
from minserve.server.model import ServedModel
from minserve.server.options import ServerOptions
from minserve.server.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "an error, in OpenAI's shape"}
    for status in (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)
}
_MOST_WAIT_S = 60
CLOCK = WallClock()
Made = TypeVar("Made")


class Service:
    """What the routes share: the model, the metrics, and a thread that tokenizes."""

    def __init__(self, model: ServedModel, options: ServerOptions) -> None:
        self.model = model
        self.options = options
        self.metrics = EngineMetrics(model.llm, price_per_hour=options.price_per_hour)
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="minserve-server")
        self.open: set[Generation] = set()
        """Generations that have not ended."""

    async def generate(
        self, request: Request, exchange: Exchange, body: CompletionRequest | ChatRequest
    ) -> Response:
        """Answer a request, or begin to."""
        arrived_s = CLOCK.now()
        timeout_s = min(body.timeout_s or math.inf, self.options.request_timeout_s or math.inf)
        deadline_s = arrived_s + timeout_s if timeout_s < math.inf else None
        try:
            generation = await unless_gone(request, self._start(exchange, body, deadline_s))
        except Gone:
            return Response(status_code=499)
        self.open.add(generation)

        def close() -> None:
            generation.close()
            self.open.discard(generation)
            # `guard` writes it, with the request's name, status and time.
            request.state.log = {
                "user": body.user,
                "prompts": len(exchange.prompt_ids),
                "prompt_tokens": sum(map(len, exchange.prompt_ids)),
                "completion_tokens": exchange.usage.get("completion_tokens"),
            }

        if body.stream:
            events = _until(exchange.events(generation), deadline_s)
            return EventStream(events, close, self.options.send_timeout_s)
        try:
            work = _in_time(collect(generation, exchange.params.n), deadline_s)
            return JSONResponse(exchange.answer(await unless_gone(request, work)))
        except Gone:
            return Response(status_code=499)
        finally:
            close()

    async def _start(
        self,
        exchange: Exchange,
        body: CompletionRequest | ChatRequest,
        deadline_s: float | None,
    ) -> Generation:
        try:
            return await _in_time(
                Generation.start(
                    self.model.llm, self.executor, exchange.prompts, exchange.params,
                    body.priority or 0,
                ),
                deadline_s,
            )  # fmt: skip
        except ApiError:
            raise
        except Exception as error:
            raise api_error(error, self.retry_after_s()) from error

    def retry_after_s(self) -> int:
        """Seconds until a queue as long as now has probably been served."""
        health = self.model.llm.health()
        totals = self.model.llm.trace.totals
        if not totals.finished_requests or not totals.busy_s:
            return 1
        rate = totals.finished_requests / totals.busy_s
        return max(1, min(_MOST_WAIT_S, math.ceil(health.num_waiting / rate)))

    def end(self) -> None:
        """Abort what is still open: its clients are told."""
        for generation in list(self.open):
            generation.close()


async def _in_time(work: Awaitable[Made], deadline_s: float | None) -> Made:
    """The result of `work`. Raises ApiError 504 at the deadline."""
    left = None if deadline_s is None else max(0.0, deadline_s - CLOCK.now())
    try:
        async with asyncio.timeout(left):
            return await work
    except TimeoutError:
        raise _late() from None


async def _until(events: AsyncIterator[str], deadline_s: float | None) -> AsyncIterator[str]:
    while True:
        try:
            yield await _in_time(anext(events), deadline_s)
        except StopAsyncIteration:
            return


def _late() -> ApiError:
    return ApiError(504, "the request's deadline has passed", code="deadline_exceeded")


router = APIRouter(route_class=LimitedRoute, responses=_ERRORS)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Continue one or several prompts."""
    service = _service(request)
    service.model.check_name(body.model)
    return await service.generate(request, Completion(service.model, body), body)


@router.post("/v1/chat/completions")
async def chat(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    service = _service(request)
    service.model.check_name(body.model)
    return await service.generate(request, Chat(service.model, body), body)


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The one model that is served."""
    return {"object": "list", "data": [_service(request).model.described()]}


@router.get("/v1/models/{name:path}")
async def one_model(request: Request, name: str) -> dict[str, Any]:
    """One model by its name."""
    model = _service(request).model
    model.check_name(name)
    return model.described()


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest) -> dict[str, Any]:
    """Token ids of a prompt, or of a conversation as the model reads it."""
    service = _service(request)
    model = service.model
    model.check_name(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give prompt or messages, one of them", "prompt")

    def ids() -> list[int]:
        if body.messages is not None:
            return model.render(body.messages)
        return model.encode(body.prompt or "", body.add_special_tokens)

    tokens = await asyncio.get_running_loop().run_in_executor(service.executor, ids)
    return {
        "tokens": tokens,
        "count": len(tokens),
        "max_model_len": model.llm.config.max_model_len,
    }


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest) -> dict[str, Any]:
    """The text of token ids."""
    model = _service(request).model
    model.check_name(body.model)
    tokenizer = model.llm.tokenizer
    if tokenizer is None:
        raise ApiError(400, "this model came without a tokenizer", "tokens")
    most = model.llm.config.model.vocab_size
    for token in body.tokens:
        if not 0 <= token < most:
            raise ApiError(400, f"tokens has {token}: expected ids from 0 to {most - 1}", "tokens")
    text = await asyncio.get_running_loop().run_in_executor(
        _service(request).executor, lambda: tokenizer.decode(body.tokens, skip_special_tokens=False)
    )
    return {"prompt": text}


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 while the engine works; 503, with the reason, when it is stuck or has ended."""
    found = _service(request).model.llm.health()
    good = found.state in ("idle", "working")
    told: dict[str, Any] = {
        "status": found.state,
        "running": found.num_running,
        "waiting": found.num_waiting,
    }
    if found.last_error is not None:
        told["last_error"] = found.last_error
    return JSONResponse(told, 200 if good else 503)


@router.get("/version")
async def version() -> dict[str, str]:
    """The server's version."""
    return {"version": __version__}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus metrics of the engine."""
    found = _service(request).metrics
    return Response(found.render(), media_type=found.content_type)


def make_app(service: Service) -> FastAPI:
    """The application over one engine."""
    app = FastAPI(title="minserve", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.options = service.options
    app.include_router(router)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    for kind in (ApiError, InvalidRequestError, EngineError, EngineClosedError):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(Exception, on_error)  # a fault of ours, which is logged too
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        for path in document["paths"].values():
            for operation in path.values():
                # A body that does not fit is answered with 400, as in OpenAI's API.
                operation["responses"].pop("422", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
    return app
