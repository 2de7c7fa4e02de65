"""Limits on the size of requests and on changes per minute, so high that only a runaway client
reaches them.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.errors import (
    ApiError,
    TooLargeError,
    TooManyRequestsError,
    UnavailableError,
    UnprocessableError,
)
from backend.http.problems import (
    MAX_BODY_BYTES,
    MAX_UPLOAD_BYTES,
    SAE_UPLOADS,
    TOO_LARGE,
    UPLOAD_TOO_LARGE,
    UPLOADS,
    problem_of,
)
from backend.http.rates import Rate

MAX_CHANGES = 16
"""Changes made at a time."""
WAIT_SECONDS = 5.0
"""How long a change waits for others before it is refused."""
BODY_SECONDS = 30.0
"""Longest silence within a request's body."""
WITHOUT_DATABASE = ("/activations", "/steer", "/preview", UPLOADS, SAE_UPLOADS)
"""Endpoints that write nothing to the database and limit themselves."""
READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class RequestLimits:
    """ASGI middleware that refuses requests that are too large or too frequent.

    The application itself cuts off a request without a Content-Length while it reads. Only a few
    changes are made at a time: they may wait for each other, and readers need threads too.
    """

    def __init__(
        self, app: ASGIApp, per_minute: int, *, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self.app = app
        self._wait_seconds = wait_seconds
        self._changes = asyncio.Semaphore(MAX_CHANGES)
        self._rate = Rate(per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                _check_length(scope)
                receive = _Patient(receive)
                if b"%00" in scope["query_string"]:
                    raise UnprocessableError(
                        "The query contains a NUL character; remove it.", kind="invalid"
                    )
                if scope["method"] not in READ_METHODS:
                    self._count(scope)
                    if not scope["path"].endswith(WITHOUT_DATABASE):
                        await self._change(scope, receive, send)
                        return
        except ApiError as error:
            await problem_of(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _change(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._changes.acquire()
        except TimeoutError:
            raise UnavailableError(
                "Too many changes wait for the database; try again in a few seconds.",
                kind="database",
                retry_after_seconds=5,
            ) from None
        try:
            await self.app(scope, receive, send)
        finally:
            self._changes.release()

    def _count(self, scope: Scope) -> None:
        client = scope.get("client")
        address = client[0] if client else "unknown"
        if seconds := self._rate.wait_seconds(address):
            raise TooManyRequestsError(
                f"{address} sent more than {self._rate.amount} changes within a minute; try again "
                "later, or raise SAE_WORKBENCH_CHANGES_PER_MINUTE.",
                kind="too-many-requests",
                retry_after_seconds=seconds,
            )
        self._rate.count(address)


class _Patient:
    """Receives a request; refuses one whose parts do not arrive in time."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_complete = False

    async def __call__(self) -> Message:
        if self._is_complete:  # next comes the client's disconnect, at any time
            return await self._receive()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await self._receive()
        except TimeoutError:
            detail = f"The request's body stopped for {BODY_SECONDS:.0f} s; send it again."
            raise HTTPException(408, detail) from None
        self._is_complete = not message.get("more_body", False)
        return message


def _check_length(scope: Scope) -> None:
    length = Headers(scope=scope).get("content-length", "0")
    uploads = scope["path"].endswith((UPLOADS, SAE_UPLOADS))
    limit = MAX_UPLOAD_BYTES if uploads else MAX_BODY_BYTES
    if length.isdecimal() and (len(length) > 15 or int(length) > limit):
        raise TooLargeError(UPLOAD_TOO_LARGE if uploads else TOO_LARGE, kind="too-large")
