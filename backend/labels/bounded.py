"""An HTTP client whose answers are limited in size and in time, whatever an endpoint sends.

Used by `chat`, which imports it when a labeling job starts: it builds on the `openai` client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from openai import DefaultAsyncHttpxClient

MAX_ANSWER_BYTES = 4 * 2**20
"""A hundred times what an answer of `chat.MAX_ANSWER_TOKENS` takes."""


class UnboundedAnswerError(Exception):
    """An answer that is not read to its end; the text goes on from the endpoint's name."""


class BoundedClient(DefaultAsyncHttpxClient):
    """Each request must end within `seconds`, its redirects and the last byte of its answer
    included; raises `httpx2.ReadTimeout` and `UnboundedAnswerError`.
    """

    def __init__(self, seconds: float, connect_seconds: float) -> None:
        super().__init__(
            timeout=httpx2.Timeout(seconds, connect=connect_seconds),
            # The size of compressed bytes says nothing about what they unpack to.
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [_bound]},
        )
        self._seconds = seconds

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._seconds):
                return await super().send(request, **options)
        except TimeoutError:
            raise httpx2.ReadTimeout("The answer takes too long.", request=request) from None


async def _bound(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise UnboundedAnswerError("compresses its answers, but was asked not to")
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _BoundedStream(response.stream)


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        async for part in self._stream:
            num_bytes += len(part)
            if num_bytes > MAX_ANSWER_BYTES:
                raise UnboundedAnswerError(f"answered with more than {MAX_ANSWER_BYTES:,} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
