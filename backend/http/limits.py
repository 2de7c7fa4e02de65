"""Limits on the size of requests and on changes per minute, which only runaway programs exceed."""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.errors import ApiError, TooLargeError, TooManyRequestsError, UnprocessableError
from backend.http.problems import MAX_BODY_BYTES, TOO_LARGE, problem_of

READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class RequestLimits:
    """ASGI middleware that refuses requests that are too large or too frequent.

    A request without a Content-Length is cut off by the application as it reads.
    """

    def __init__(self, app: ASGIApp, per_minute: int) -> None:
        self.app = app
        self._limit = RateLimitItemPerMinute(per_minute)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                _check_length(scope)
                if b"%00" in scope["query_string"]:
                    raise UnprocessableError(
                        "The query contains a NUL character; remove it.", kind="invalid"
                    )
                if scope["method"] not in READ_METHODS:
                    await self._count(scope)
        except ApiError as error:
            await problem_of(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _count(self, scope: Scope) -> None:
        client = scope.get("client")
        address = client[0] if client else "unknown"
        if await self._limiter.hit(self._limit, address):
            return
        window = await self._limiter.get_window_stats(self._limit, address)
        raise TooManyRequestsError(
            f"{address} sent more than {self._limit.amount} changes within a minute; try again "
            "later, or raise SAE_WORKBENCH_CHANGES_PER_MINUTE.",
            kind="too-many-requests",
            retry_after_seconds=max(1, math.ceil(window.reset_time - time.time())),
        )


def _check_length(scope: Scope) -> None:
    length = Headers(scope=scope).get("content-length", "0")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        raise TooLargeError(TOO_LARGE, kind="too-large")
