"""How the CPU kernels are compiled, and how they share the processor's cores."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch

_FOLDER = Path(__file__).parent
_CACHED = os.access(_FOLDER, os.W_OK)


def drop_outdated(folder: Path) -> None:
    """Delete the machine code beside a folder's sources if any of them has changed since.

    numba looks only at the file a function stands in, not at those of the functions it calls.
    """
    sources = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    digest, stamp = hashlib.sha256(sources).hexdigest(), folder / "__pycache__" / "sources.sha256"
    if stamp.exists() and stamp.read_text() == digest:
        return
    for path in folder.rglob("*.nb[ci]"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # no room: then all is compiled again next time
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(digest)


if _CACHED:
    drop_outdated(_FOLDER)

compiled: Callable[..., Any] = numba.njit(
    nogil=True, cache=_CACHED, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}
)
"""Compile a function at its first call and keep the machine code beside the source, if that
can be written. It releases the interpreter, so that threads run it side by side.
"""

compiled_finite: Callable[..., Any] = numba.njit(
    nogil=True,
    cache=_CACHED,
    error_model="numpy",
    fastmath={"reassoc", "contract", "nsz", "arcp", "nnan"},
)
"""The same for functions that take maxima, which vectorize only where NaN need not be kept: theirs
is an arbitrary number then.
"""


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="kernel")


def num_threads() -> int:
    """As many as PyTorch uses."""
    return torch.get_num_threads()


def in_parallel(work: Callable[[int, int], None], parts: int) -> None:
    """Call `work(part, thread)` for every part; part p always runs on thread p % num_threads()."""
    threads = min(num_threads(), parts)

    def share(thread: int) -> None:
        for part in range(thread, parts, threads):
            work(part, thread)

    others = [_pool(threads - 1).submit(share, t) for t in range(1, threads)]
    try:
        share(0)
    finally:
        wait(others)
    for other in others:
        other.result()
