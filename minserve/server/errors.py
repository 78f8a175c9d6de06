"""Errors in OpenAI's shape, with the status codes that clients act on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from minserve.engine.recovery import EngineError
from minserve.frontend.thread.inbox import EngineClosedError
from minserve.inputs.checks import shorten
from minserve.request import InvalidRequestError, QueueFullError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
_FIELD = re.compile(r"SamplingParams\.(\w+)")


class ApiError(Exception):
    """An answer that is an error: `status`, a sentence, and the field it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def api_error(error: BaseException, retry_after_s: int = 1) -> ApiError:
    """The answer to an error of the engine or of its front door. `retry_after_s` goes to clients
    that are told to come again."""
    if isinstance(error, ApiError):
        return error
    again = {"Retry-After": str(retry_after_s)}
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", headers=again)
    if isinstance(error, InvalidRequestError):
        found = _FIELD.search(str(error))
        return ApiError(400, str(error), param=found.group(1) if found else None)
    if isinstance(error, EngineError):
        return ApiError(500, str(error), code="engine_error")
    if isinstance(error, EngineClosedError):
        return ApiError(503, f"the engine has stopped: {error}", headers=again)
    return ApiError(500, f"the server failed: {type(error).__name__}: {shorten(str(error), 300)}")


def of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body: which field, what was expected."""
    first = error.errors()[0]
    place = [str(part) for part in first.get("loc", ()) if part != "body"]
    field = ".".join(place)
    kind = first.get("type", "")
    if kind == "extra_forbidden":
        return ApiError(
            400, f"{field}: this server does not support the field; leave it out", field
        )
    if kind == "json_invalid" or not place:
        return ApiError(400, f"the body is no JSON object: {first.get('msg', '')}")
    if kind == "missing":
        return ApiError(400, f"{field}: the field is required", field)
    value = shorten(first.get("input"))
    message = str(first.get("msg", "")).removeprefix("Value error, ")
    return ApiError(400, f"{field}={value}: {message[:1].lower()}{message[1:]}", field)


async def on_validation(request: Request, error: Exception) -> JSONResponse:
    """For FastAPI: a body that does not fit the schema."""
    assert isinstance(error, RequestValidationError)
    return of_validation(error).response()


async def on_http(request: Request, error: Exception) -> JSONResponse:
    """For FastAPI: an unknown path, a wrong method, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    said = {
        404: f"there is no {request.url.path} here",
        405: f"{request.method} is not allowed for {request.url.path}",
    }
    message = said.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, message, headers=error.headers).response()


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """For FastAPI: everything else."""
    return api_error(error).response()
