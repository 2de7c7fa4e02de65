"""How the CPU kernels are compiled, and how they share the processor's cores.

Machine code is kept in the user's cache folder, in a subfolder named after the digest of all kernel
sources: numba alone checks only the file that a function is defined in, and would run outdated code
after a change to a file of its callees. Python, numba and the processor are in numba's own keys.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch

OUTDATED_SECONDS = 30 * 24 * 3600
"""Machine code of other sources is removed after this time without use."""

_log = logging.getLogger(__name__)
_numba_config: Any = numba.config  # pyright: ignore[reportPrivateImportUsage]


def source_digest(folder: Path) -> str:
    """Digest of all Python files in a folder and its subfolders."""
    sources = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return hashlib.sha256(sources).hexdigest()[:32]


def open_cache(root: Path, digest: str) -> Path:
    """Make the cache folder of the sources with this digest; raises `OSError` if not writable."""
    folder = root / digest
    if not folder.is_dir():
        for other in root.glob("*"):
            with suppress(OSError):  # another process may remove it at the same time
                if time.time() - other.stat().st_mtime > OUTDATED_SECONDS:
                    shutil.rmtree(other)
        folder.mkdir(parents=True, exist_ok=True)
    # Proves that the folder is writable, as numba demands, and renews its modification time.
    tempfile.NamedTemporaryFile(dir=folder).close()
    return folder


def _user_cache() -> Path | None:
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "sae-workbench" / "kernels"
    try:
        return open_cache(root.expanduser(), source_digest(Path(__file__).parent))
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home folder
        _log.warning(
            "Every process compiles the kernels again, because '%s' is not writable (%s); set "
            "XDG_CACHE_HOME to a writable folder.", root, error,
        )  # fmt: skip
        return None


_CACHE = _user_cache()


def _compiler(*fastmath: str) -> Callable[..., Any]:
    jit = numba.njit(
        nogil=True, cache=_CACHE is not None, error_model="numpy", fastmath=set(fastmath)
    )

    def compile_lazily(function: Callable[..., Any]) -> Any:
        others = _numba_config.CACHE_DIR  # other libraries that use numba keep their own folder
        _numba_config.CACHE_DIR = str(_CACHE or others)
        try:
            return jit(function)
        finally:
            _numba_config.CACHE_DIR = others

    return compile_lazily


compiled = _compiler("reassoc", "contract", "nsz", "arcp")
"""Compile a function at its first call. Compiled functions release the GIL, so threads run them in
parallel.
"""

compiled_finite = _compiler("reassoc", "contract", "nsz", "arcp", "nnan")
"""The same for functions that take maxima: LLVM vectorizes a maximum only if it may ignore NaN. If
an argument holds NaN, the result is arbitrary.
"""


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="kernel")


def num_threads() -> int:
    """As many threads as PyTorch uses."""
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
