"""Turns every error into an `application/problem+json` response.

`ApiError` carries its status. The engine's `UserError` is written for users and becomes a 422. Any
other error is ours: a 500 whose traceback the server logs.
"""

from __future__ import annotations

import errno
import json
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from backend.errors import ApiError, FailedError, UnauthorizedError
from backend.store.database import DISK_FULL, DatabaseGoneError, lacks_room, log_failure, refusal
from sae_engine.errors import ConfigError, DiskFullError, UserError
from sae_engine.features.index.manifest import IndexDamagedError
from sae_engine.schema.problems import FieldProblem, Problem, message_of

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 2**20
"""Largest request body; far more than any text that a model reads at once."""
MAX_UPLOAD_BYTES = 4 * 2**30
"""Largest file that can be uploaded."""
UPLOADS = "/texts"
SAE_UPLOADS = "/saes"
"""Where files are uploaded."""
TOO_LARGE = f"A request may hold at most {MAX_BODY_BYTES / 2**20:.0f} MiB."
UPLOAD_TOO_LARGE = (
    f"A file may hold at most {MAX_UPLOAD_BYTES / 2**30:.0f} GiB; copy a larger one to the data "
    "folder yourself."
)


_MEDIA_TYPE = "application/problem+json"
_REFERENCE = "#/components/schemas/{model}"
_SCHEMA = {"$ref": _REFERENCE.format(model=Problem.__name__)}
_RESPONSE = {
    "description": "What is wrong, in one sentence",
    "content": {_MEDIA_TYPE: {"schema": _SCHEMA}},
}
RESPONSES: dict[int | str, dict[str, Any]] = dict.fromkeys(
    (400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 507), _RESPONSE
)
"""The errors of any endpoint, for the OpenAPI document. They refer to the schema that `install`
adds. If they named the model, FastAPI would build a serializer for each error of each endpoint,
which takes most of the time before the first response.
"""


class ProblemResponse(JSONResponse):
    """A `Problem` as a response."""

    media_type = _MEDIA_TYPE

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
        """As ASCII, because a quoted request may hold characters that UTF-8 cannot encode."""
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
    """An error as the body of an event, for streams that have already begun."""
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


def unexpected_error() -> FailedError:
    """The answer to a request that failed because of a bug in the server."""
    return FailedError("Internal server error; see the server's log.", kind="internal")


async def _api_error(_: Request, error: ApiError) -> ProblemResponse:
    return problem_of(error)


async def _user_error(_: Request, error: UserError) -> ProblemResponse:
    if isinstance(error, DatabaseGoneError):
        return ProblemResponse(503, str(error), kind="database")
    if isinstance(error, DiskFullError):
        return ProblemResponse(507, str(error), kind="disk-full")
    if isinstance(error, IndexDamagedError):
        return ProblemResponse(409, str(error), kind="index-damaged")
    fields = error.problems if isinstance(error, ConfigError) else None
    return ProblemResponse(422, str(error), kind="invalid", errors=fields)


async def _data_error(_: Request, error: DataError) -> ProblemResponse:
    reason = next(iter(str(error.orig).splitlines()), "it gave no reason")
    detail = f"The database cannot store one of these values ({reason}); change or remove it."
    return ProblemResponse(422, detail, kind="invalid")


async def _invalid_request(_: Request, error: RequestValidationError) -> ProblemResponse:
    fields = [_field_problem(e) for e in error.errors()]
    detail = " ".join(f"{p.field}: {p.message}" if p.field else p.message for p in fields)
    return ProblemResponse(422, detail, kind="invalid", errors=fields)


async def _http_error(request: Request, error: HTTPException) -> ProblemResponse:
    detail = {
        404: f"There is nothing at {request.url.path}; /api/docs lists every endpoint.",
        405: f"{request.url.path} does not accept {request.method}; see /api/docs.",
        413: TOO_LARGE,
    }.get(error.status_code, error.detail)
    return ProblemResponse(error.status_code, detail, headers=dict(error.headers or {}))


async def _database_error(_: Request, error: OperationalError) -> ProblemResponse:
    if lacks_room(error):
        return ProblemResponse(507, DISK_FULL, kind="disk-full")
    log_failure(_log, "the database does not respond", error)
    detail = "The database does not respond; try again, or see the server's log."
    if (reason := refusal(error)) is not None:
        detail = f"The database refuses this server ({reason}); see SAE_WORKBENCH_DATABASE_URL."
    return ProblemResponse(503, detail, kind="database", headers={"Retry-After": "1"})


async def _no_connection(_: Request, __: TimeoutError) -> ProblemResponse:
    detail = "Too many requests wait for the database; try again in a few seconds."
    return ProblemResponse(503, detail, kind="database", headers={"Retry-After": "5"})


async def _system_error(_: Request, error: OSError) -> ProblemResponse:
    if error.errno == errno.ENAMETOOLONG:
        detail = "A name in the request is too long for a file name; give a shorter one."
        return ProblemResponse(422, detail, kind="invalid")
    raise error


async def _unexpected(_: Request, __: Exception) -> ProblemResponse:
    return problem_of(unexpected_error())


_HANDLERS: dict[type[Exception], Any] = {
    ApiError: _api_error,
    UserError: _user_error,
    DataError: _data_error,
    RequestValidationError: _invalid_request,
    HTTPException: _http_error,
    OperationalError: _database_error,
    TimeoutError: _no_connection,
    OSError: _system_error,
    Exception: _unexpected,
}


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem, and add the schema to its OpenAPI document."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    without_problem = app.openapi

    def openapi() -> dict[str, Any]:
        document = without_problem()
        schema = Problem.model_json_schema(ref_template=_REFERENCE)
        schemas = document["components"]["schemas"] | schema.pop("$defs")
        schemas[Problem.__name__] = schema
        document["components"]["schemas"] = dict(sorted(schemas.items()))
        return document

    app.openapi = openapi


def _field_problem(error: Any) -> FieldProblem:
    path = [str(part) for part in error["loc"]]
    if path and path[0] in ("body", "query", "path", "header"):
        path = path[1:]
    if error["type"] == "json_invalid":
        return FieldProblem(field="", message="The request's body is not valid JSON.")
    return FieldProblem(field=".".join(path), message=message_of(error))
