"""Every error as an HTTP answer: one table from exception to status, one form of body."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edge_sdk import errors
from edge_sdk.wire.messages import Problem, encode_message
from server.http.request_ids import current_request_id

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

_MOST_DETAIL_CHARACTERS = 1000

STATUS: Mapping[type[errors.EdgeError], int] = {
    errors.MalformedMessage: 400,
    errors.MalformedPayload: 400,
    errors.DigestMismatch: 400,
    errors.NotFinite: 400,
    errors.ProtocolMismatch: 400,
    errors.ConfigError: 400,
    errors.SketchError: 400,
    errors.NotAuthorized: 401,
    errors.TokenExpired: 401,
    errors.TokenUsedUp: 401,
    errors.StaleChallenge: 401,
    errors.BadProof: 401,
    errors.NotAssigned: 403,
    errors.NotAllowed: 403,
    errors.Revoked: 403,
    errors.NotFound: 404,
    errors.TooSlow: 408,
    errors.WrongBaseModel: 409,
    errors.RoundClosed: 409,
    errors.UpdateConflict: 409,
    errors.TooLarge: 413,
    errors.RangeNotSatisfiable: 416,
    errors.TooManyRequests: 429,
    errors.QuotaExceeded: 429,
    errors.ServerFailed: 500,
    errors.ServerBusy: 503,
    errors.StorageError: 507,
}


def install(app: FastAPI) -> None:
    """Make an application answer every error with a problem body."""
    app.add_exception_handler(errors.EdgeError, _on_edge_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


def answer(error: errors.EdgeError, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response of one error; one outside the table is the server's own failure."""
    status = STATUS.get(type(error))
    if status is None:
        error = errors.ServerFailed("the server failed; its log says why")
        status = STATUS[errors.ServerFailed]
    problem = Problem(
        title=error.code.replace("_", " "),
        status=status,
        code=error.code,
        detail=_shortened(str(error)),
        request_id=current_request_id(),
    )
    return Response(
        encode_message(problem),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={**_headers(error), **(headers or {})},
    )


def _shortened(text: str) -> str:
    """Cut what quotes a request too generously; nobody makes this server send much."""
    if len(text) <= _MOST_DETAIL_CHARACTERS:
        return text
    return f"{text[:_MOST_DETAIL_CHARACTERS]}…"


def _headers(error: errors.EdgeError) -> dict[str, str]:
    if isinstance(error, errors.ServerBusy):
        return {"Retry-After": str(math.ceil(error.retry_after_s))}
    if isinstance(error, errors.NotAuthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, errors.RangeNotSatisfiable):
        return {"Content-Range": f"bytes */{error.size_bytes}"}
    return {}


async def _on_edge_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, errors.EdgeError) or type(error) not in STATUS:
        raise error
    if isinstance(error, errors.StorageError):
        log.error("%s", error)
    return answer(error)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return answer(errors.MalformedMessage(f"{where}: {first['msg']}"))


async def _on_http_error(_request: Request, error: Exception) -> Response:
    """Answer what the framework refuses: unknown paths, wrong methods, unreadable JSON."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code == HTTPStatus.BAD_REQUEST:
        return answer(errors.MalformedMessage(str(error.detail)))
    return answer(
        errors.NotFound(f"{error.detail}: /openapi.json lists what this server answers"),
        error.headers,
    )


async def _on_disconnect(_request: Request, _error: Exception) -> Response:
    """End a request whose sender is gone; nobody reads the answer."""
    return answer(errors.MalformedMessage("the connection closed before the body was complete"))
