"""The process that makes one analysis. Started by `client`; `protocol` says how and what it
reports.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from backend.analyses.protocol import Message
from backend.processes import lower_priority
from backend.settings import load_settings
from sae_engine.errors import UserError
from sae_engine.features.geometry.files import Layout, Matches
from sae_engine.features.index.format import SAE, firing
from sae_engine.files import published_folder

REPORT_SECONDS = 0.3
END_SECONDS = 5.0
"""Time to clean up after the server is gone."""


def main(arguments: Sequence[str]) -> int:
    """Compute and publish; returns the process's exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    lower_priority(load_settings().niceness)
    kind, target, *folders = arguments
    try:
        result = COMPUTE[kind](*map(Path, folders))
        with published_folder(Path(target)) as made:
            result.save(made)
    except UserError as error:
        _send(Message(error=str(error)))
        return 1
    return 0


def _map(folder: Path) -> Layout:
    from sae_engine.features.geometry.layout import lay_out

    return lay_out(folder, folder / SAE, report=_Reporter())


def _matches(folder_a: Path, folder_b: Path) -> Matches:
    from sae_engine.features.geometry.matches import match_decoders

    alive = firing(folder_a), firing(folder_b)
    return match_decoders(folder_a / SAE, folder_b / SAE, alive=alive, report=_Reporter())


COMPUTE: dict[str, Callable[..., Layout | Matches]] = {"map": _map, "matches": _matches}


class _Reporter:
    """Sends the progress, at most every `REPORT_SECONDS` within a phase."""

    def __init__(self) -> None:
        self._phase = ""
        self._next = 0.0

    def __call__(self, phase: str, fraction: float | None) -> None:
        if phase != self._phase or time.monotonic() >= self._next:
            self._phase, self._next = phase, time.monotonic() + REPORT_SECONDS
            _send(Message(phase=phase, fraction=fraction))


def _send(message: Message) -> None:
    print(message.model_dump_json(), flush=True)


def _terminate(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _end_with_the_server() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the pipe closes; the client never writes
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
