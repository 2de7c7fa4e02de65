"""Folders that vanish with the process that writes into them, however it ends.

A process holds a lock on its folder, which is released when the process exits. `remove_abandoned`
removes the folders that nobody holds: the next process that makes one calls it, and the server when
it starts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Literal

Purpose = Literal["push", "export", "upload"]
_PUBLISHED = ".*." + 8 * "[0-9a-f]"
_PATTERNS = (".push-*", ".export-*", ".upload-*", f"{_PUBLISHED}.tmp", f"{_PUBLISHED}.old")
"""Of folders made here, and of those that `files.published_folder` makes."""


@contextmanager
def scratch_folder(parent: Path, purpose: Purpose) -> Generator[Path]:
    """Yield an empty folder in `parent`, removed at the end; first remove abandoned ones."""
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent)
    folder, descriptor = _held_folder(parent, f".{purpose}-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def held(folder: Path) -> Generator[None]:
    """Keep `folder` from being removed as abandoned."""
    descriptor = _hold(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def remove_abandoned(parent: Path) -> None:
    """Remove the scratch folders in `parent` whose process has ended; those on a file system
    without locks stay.
    """
    for folder in _found(parent):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _found(parent: Path) -> Iterator[Path]:
    for pattern in _PATTERNS:
        yield from parent.glob(pattern)


def _held_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder and the descriptor that holds it."""
    while True:
        folder = Path(mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):  # removed as abandoned before it was held
            descriptor = _hold(folder)
            if folder.is_dir():
                return folder, descriptor
            os.close(descriptor)


def _hold(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor
