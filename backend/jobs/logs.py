"""How logs are written, and the end of one read."""

from __future__ import annotations

import os
from pathlib import Path

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_BYTES = 2**20


def tail(path: Path, num_lines: int) -> str:
    """The last lines of a file, at most 1 MiB of it; of a line that was rewritten in place, its
    last state.
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
