"""Log files of runs: their format, how they are written, and how their end is read."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LOG_TAIL_LINES = 60
"""Number of log lines stored with a failed run."""
MAX_BYTES = 2**20
_CONTROLS = (
    {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
    | {127: "\N{SYMBOL FOR DELETE}"}
    | dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}")
)


def plain(text: str) -> str:
    """Text that a terminal shows as it is: control characters, which could move its cursor or set
    its title, become symbols.
    """
    return text.translate(_CONTROLS)


class PlainFormatter(logging.Formatter):
    """Formats log lines that a terminal shows as they are."""

    def __init__(self) -> None:
        super().__init__(LOG_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def log_plainly(level: int = logging.INFO) -> None:
    """Log to standard error, with the time, as a process of its own does."""
    logging.basicConfig(level=level, force=True)
    logging.getLogger().handlers[0].setFormatter(PlainFormatter())


@contextmanager
def logging_into(paths: Sequence[Path]) -> Generator[None]:
    """Write everything that this process logs to some files as well."""
    root = logging.getLogger()
    handlers = [logging.FileHandler(path, encoding="utf-8") for path in paths]
    level = root.level
    for handler in handlers:
        handler.setFormatter(PlainFormatter())
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def print_into(path: Path) -> None:
    """Append everything that this process and its children print from now on to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


def tail(path: Path, num_lines: int) -> str:
    """The last lines of a file, read from its last MiB.

    Of a line overwritten with carriage returns, only the final text is kept.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    if lines and not lines[-1]:
        lines.pop()
    return "".join(f"{line}\n" for line in lines[-num_lines:]) if num_lines else ""
