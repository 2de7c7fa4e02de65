"""How many connections a server accepts, and when it closes those that send nothing.

Read by `serve` and `services`. Every connection holds a descriptor, and a process without any left
can neither answer, nor read its database, nor start a job.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

RESERVED_DESCRIPTORS = 256
"""For databases, feature indexes, log files and the pipes of processes."""
DESCRIPTORS_PER_CONNECTION = 2
"""A page's connection may make the pages ask the API over another one."""
MAX_CONNECTIONS = 4_096
MIN_CONNECTIONS = 16
SILENCE_SECONDS = 10.0


def most_connections(descriptors: int) -> int:
    """Connections that a process with a limit of open files may accept."""
    spare = (descriptors - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION
    return min(max(spare, MIN_CONNECTIONS), MAX_CONNECTIONS)


def report_exhaustion(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: one sentence, without a traceback, when a burst of
    connections takes the last descriptor. The loop accepts again after a second.
    """
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        logger.warning("%s; new connections wait for a second.", error.strerror)
    else:
        loop.default_exception_handler(context)


class ImpatientProtocol(H11Protocol):
    """HTTP that closes a connection without a complete request for 10 to 20 seconds, and earlier
    where a new connection would be one too many.
    """

    silence_seconds = SILENCE_SECONDS
    _opened_at = 0.0
    _silent_since: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._opened_at = self.loop.time()
        self.loop.call_later(self.silence_seconds, self._check)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    @property
    def _is_silent(self) -> bool:
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete

    def _check(self) -> None:
        if self not in self.connections:  # closed, or a WebSocket by now
            return
        if self._is_silent and self.cycle is self._silent_since:
            self._close()
            return
        self._silent_since = self.cycle if self._is_silent else self
        self.loop.call_later(self.silence_seconds, self._check)

    def _make_room(self) -> None:
        """Close the oldest silent connection; this one, if all others are busy."""
        http = [each for each in self.connections if isinstance(each, ImpatientProtocol)]
        silent = [each for each in http if each._is_silent]
        min(silent, key=lambda each: each._opened_at)._close()

    def _close(self) -> None:
        self.connections.discard(self)
        self.transport.close()
