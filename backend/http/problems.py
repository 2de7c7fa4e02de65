"""Every error leaves as `application/problem+json`, made here.

The engine's `UserError` is fit to be shown and becomes a 422; anything unexpected becomes a 500,
whose traceback the server logs.
"""

from __future__ import annotations

import errno
import json
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from backend.errors import ApiError, UnauthorizedError
from backend.store.database import DISK_FULL, lacks_room
from sae_engine.errors import ConfigError, DiskFullError, UserError
from sae_engine.features.index.manifest import IndexDamagedError
from sae_engine.schema.problems import FieldProblem, Problem

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 2**20
"""Of a request: no text that a model could read at once comes near it."""
TOO_LARGE = f"A request may hold at most {MAX_BODY_BYTES / 2**20:.0f} MiB."


class ProblemResponse(JSONResponse):
    """A `Problem` as a response."""

    media_type = "application/problem+json"

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str = "",
        errors: list[FieldProblem] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        problem = _problem(status, detail, kind, errors or [])
        super().__init__(problem.model_dump(), status_code=status, headers=headers)

    def render(self, content: Any) -> bytes:
        """In ASCII: what a request holds may be no text at all, and is quoted nevertheless."""
        return json.dumps(content).encode()


def _problem(status: int, detail: str, kind: str, errors: list[FieldProblem]) -> Problem:
    return Problem(
        type=f"urn:sae-workbench:{kind}" if kind else "about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=errors,
    )


def problem_shape(error: ApiError) -> Problem:
    """An error as it travels where no response can be made of it, inside a stream."""
    return _problem(error.status, error.detail, error.kind, error.errors)


def problem_of(error: ApiError) -> ProblemResponse:
    headers: dict[str, str] = {}
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return ProblemResponse(
        error.status, error.detail, kind=error.kind, errors=error.errors, headers=headers
    )


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""

    async def api_error(_: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, ApiError)
        return problem_of(error)

    async def user_error(_: Request, error: Exception) -> ProblemResponse:
        if isinstance(error, DiskFullError):
            return ProblemResponse(507, str(error), kind="disk-full")
        if isinstance(error, IndexDamagedError):
            return ProblemResponse(409, str(error), kind="index-damaged")
        fields = error.problems if isinstance(error, ConfigError) else None
        return ProblemResponse(422, str(error), kind="invalid", errors=fields)

    async def not_storable(_: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, DataError)
        reason = next(iter(str(error.orig).splitlines()), "it gave no reason")
        detail = f"The database cannot hold one of these values: {reason}. Send it without that."
        return ProblemResponse(422, detail, kind="invalid")

    async def invalid_request(_: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, RequestValidationError)
        fields = [_field_problem(e) for e in error.errors()]
        detail = " ".join(f"{p.field}: {p.message}" if p.field else p.message for p in fields)
        return ProblemResponse(422, detail, kind="invalid", errors=fields)

    async def http_error(request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, HTTPException)
        detail = error.detail
        if error.status_code == 404:
            detail = f"There is nothing at {request.url.path}; see /api/docs for what there is."
        elif error.status_code == 413:
            detail = TOO_LARGE
        elif error.status_code == 405:
            detail = f"{request.url.path} does not answer {request.method}; see /api/docs."
        return ProblemResponse(error.status_code, detail, headers=dict(error.headers or {}))

    async def database_error(_: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, OperationalError)
        if lacks_room(error):
            return ProblemResponse(507, DISK_FULL, kind="disk-full")
        _log.error("the database does not answer", exc_info=error)
        detail = "The database does not answer now; try again, or see the server's log."
        return ProblemResponse(503, detail, kind="database", headers={"Retry-After": "1"})

    async def system_error(_: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, OSError)
        if error.errno == errno.ENAMETOOLONG:
            detail = "A name of the request is longer than a file's can be; give a shorter one."
            return ProblemResponse(422, detail, kind="invalid")
        raise error

    async def too_large_a_number(_: Request, __: Exception) -> ProblemResponse:
        detail = "A number of the request is too large to be one; give a smaller one."
        return ProblemResponse(422, detail, kind="invalid")

    async def unexpected(_: Request, __: Exception) -> ProblemResponse:
        detail = "The server made a mistake; its log has the details."
        return ProblemResponse(500, detail, kind="internal")

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(UserError, user_error)
    app.add_exception_handler(DataError, not_storable)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(OperationalError, database_error)
    app.add_exception_handler(OSError, system_error)
    app.add_exception_handler(OverflowError, too_large_a_number)
    app.add_exception_handler(Exception, unexpected)


def _field_problem(error: Any) -> FieldProblem:
    path = [str(part) for part in error["loc"]]
    if path and path[0] in ("body", "query", "path", "header"):
        path = path[1:]
    if error["type"] == "json_invalid":
        return FieldProblem(field="", message="The request's body is not valid JSON.")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        message = "It is required."
    elif error["type"] != "value_error":
        message = f"{message} (got {error['input']!r})."[:500]
    return FieldProblem(field=".".join(path), message=message)
