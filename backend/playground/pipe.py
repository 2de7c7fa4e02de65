"""The pipe through which `client` sends questions, written by a separate thread.

Whoever asks never waits for a process that does not read.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import subprocess
import threading
from contextlib import suppress

SEND_SECONDS = 60.0
"""How long a process may read nothing while a question waits, before it is killed."""

_log = logging.getLogger(__name__)


class QuestionPipe:
    """Sends lines to a process, in order."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float = SEND_SECONDS) -> None:
        self._process = process
        self._seconds = seconds
        self.is_stuck = False
        """Whether the process was killed because it does not read."""
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        threading.Thread(target=self._write, name="questions", daemon=True).start()

    def send(self, line: bytes) -> None:
        """Send a line, later; lost if the process ends before."""
        self._lines.put(line)

    def hang_up(self) -> None:
        """Close the pipe after what was sent."""
        self._lines.put(None)

    def _write(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            while (line := self._lines.get()) is not None:
                self._write_line(pipe.fileno(), line)

    def _write_line(self, pipe: int, line: bytes) -> None:
        poll = select.poll()
        poll.register(pipe, select.POLLOUT)
        while line:
            if not poll.poll(1000 * self._seconds):
                _log.error("the process for the language model reads no questions; killing it")
                self.is_stuck = True
                self._process.kill()
                return
            with suppress(BlockingIOError):
                line = line[os.write(pipe, line) :]
