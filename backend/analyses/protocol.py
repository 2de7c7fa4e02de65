"""The messages between `client` and `worker`.

The client starts `python -m backend.analyses.worker KIND TARGET INDEX_FOLDER...`. The worker writes
messages to standard output, JSON, one per line, and publishes its result as the folder TARGET by
rename. It ends when its standard input closes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

Kind = Literal["map", "matches"]


class Message(BaseModel):
    """The worker's progress, or why it failed."""

    phase: str = "starting"
    fraction: float | None = None
    """Share of the phase that is done, if known."""
    error: str | None = None
    """One sentence for the user."""


def worker_command(kind: Kind, target: Path, indexes: Sequence[Path]) -> list[str]:
    return [sys.executable, "-m", "backend.analyses.worker", kind, str(target), *map(str, indexes)]
