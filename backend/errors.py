"""What the API answers when it cannot do what was asked.

    ApiError                  status 400
    ├── UnauthorizedError     401  no token, or a wrong one
    ├── ForbiddenError        403  the wrong door: host, origin, address
    ├── NotFoundError         404  no such run, snapshot, feature
    ├── ConflictError         409  not in this state
    ├── TooLargeError         413  a request that holds too much
    ├── UnprocessableError    422  a value that cannot be used
    ├── TooManyRequestsError  429  too often; says when to ask again
    ├── FailedError           500  the program's own mistake, in another process
    └── UnavailableError      503  not now; says when to ask again if that is known

`problems` makes them, and the engine's `UserError`, into responses.
"""

from __future__ import annotations

from http import HTTPStatus

from sae_engine.schema.problems import FieldProblem


class ApiError(Exception):
    """An answer that is an error; `detail` is one sentence fit to be shown."""

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
