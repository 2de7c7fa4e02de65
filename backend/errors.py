"""Errors that the REST API answers with.

    ApiError                  status 400
    ├── UnauthorizedError     401  missing or wrong token
    ├── ForbiddenError        403  wrong host, origin or address
    ├── NotFoundError         404  no such run, snapshot or feature
    ├── ConflictError         409  not possible in this state
    ├── TooLargeError         413  request too large
    ├── UnprocessableError    422  invalid value
    ├── TooManyRequestsError  429  too many requests; says when to retry
    ├── FailedError           500  a bug, in another process
    └── UnavailableError      503  not available now; may say when to retry

`http.problems` turns them and the engine's `UserError` into responses; the shell prints them.
"""

from __future__ import annotations

from http import HTTPStatus

from sae_engine.schema.problems import FieldProblem


class ApiError(Exception):
    """An error to show to the user; `detail` is one sentence."""

    status = HTTPStatus.BAD_REQUEST

    def __init__(
        self,
        detail: str,
        *,
        kind: str = "",
        field: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.kind = kind
        self.retry_after_seconds = retry_after_seconds
        self.errors = [FieldProblem(field=field, message=detail)] if field else []


class UnauthorizedError(ApiError):
    status = HTTPStatus.UNAUTHORIZED


class ForbiddenError(ApiError):
    status = HTTPStatus.FORBIDDEN


class NotFoundError(ApiError):
    status = HTTPStatus.NOT_FOUND


class ConflictError(ApiError):
    status = HTTPStatus.CONFLICT


class TooLargeError(ApiError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnprocessableError(ApiError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY


class TooManyRequestsError(ApiError):
    status = HTTPStatus.TOO_MANY_REQUESTS


class FailedError(ApiError):
    status = HTTPStatus.INTERNAL_SERVER_ERROR


class UnavailableError(ApiError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
