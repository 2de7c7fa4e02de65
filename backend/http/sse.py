"""Server-sent events: their text, and the response that carries them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.responses import StreamingResponse

EVENT_STREAM = "text/event-stream"


class EventStream(StreamingResponse):
    """A response that proxies must neither cache nor buffer."""

    media_type = EVENT_STREAM

    def __init__(self, events: AsyncIterator[str]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


def event_text(name: str, body: BaseModel, number: int | None = None) -> str:
    """An event with `body` as JSON; after a reconnect, clients send the last `number` they saw."""
    data = body.model_dump_json()
    id = None if number is None else str(number)
    return format_sse_event(event=name, data_str=data, id=id).decode()


def number_text(number: int) -> str:
    """An event without data, which only moves the number that clients send on a reconnect."""
    return format_sse_event(id=str(number)).decode()


def retry_text(seconds: int) -> str:
    """The time after which clients that lost the connection make another one."""
    return format_sse_event(retry=1000 * seconds).decode()


def comment_text(comment: str) -> str:
    """A line that clients ignore; it keeps the connection open."""
    return format_sse_event(comment=comment).decode()
