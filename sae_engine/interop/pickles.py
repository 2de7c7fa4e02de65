"""Reads the tensors of a PyTorch pickle (`.pt`) in a separate process.

PyTorch's restricted unpickler builds nothing but tensors and containers; the process has a limit of
memory and time and none of this one's secrets. Used by `weights`; `python -m
sae_engine.interop.pickles SOURCE TARGET` is the process, which writes safetensors.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_engine.errors import UserError
from sae_engine.files import room_needed

MAX_BYTES = 16 * 2**30
"""Largest file that is read, and largest total of its tensors."""
SPARE_BYTES = 16 * 2**30
"""Address space beyond the tensors: mostly PyTorch's libraries."""
MAX_SECONDS = 600
EXIT_REFUSED = 3
INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG")
"""Environment variables of the process."""


@contextmanager
def as_safetensors(path: Path, max_bytes: int = MAX_BYTES) -> Generator[Path]:
    """A safetensors file with the tensors of a pickle, until the block ends.

    Raises `UserError` for a file that is too large or holds anything but a dictionary of tensors.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise UserError(
            f"'{path}' has {size:,} bytes, but pickles are read up to {max_bytes:,}; save its "
            "tensors with safetensors.torch.save_file."
        )
    with room_needed(path), TemporaryDirectory(prefix="sae-workbench-") as folder:
        target = Path(folder) / "tensors.safetensors"
        _convert(path, target, max_bytes)
        yield target


def _convert(path: Path, target: Path, max_bytes: int) -> None:
    command = [sys.executable, "-P", "-m", __name__, str(path.absolute()), str(target)]
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    try:
        done = subprocess.run(
            [*command, str(max_bytes)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"'{path}' was not read within {MAX_SECONDS} seconds.") from None
    if done.returncode == EXIT_REFUSED:
        raise UserError(f"'{path}' {done.stdout.strip()}")
    if done.returncode:
        raise UserError(
            f"'{path}' could not be read as a PyTorch file of tensors; its reader ended with exit "
            f"code {done.returncode}."
        )


def write_tensors(source: str, target: str, max_bytes: int) -> str | None:
    """Write a pickle's tensors to the safetensors file `target`; returns why it is refused."""
    import torch
    from safetensors.torch import save_file

    try:
        found = torch.load(source, map_location="cpu", weights_only=True)
    except MemoryError:
        return "needs more memory than a file of tensors of its size."
    except Exception:  # whatever a damaged or hostile file causes
        return "is not a PyTorch file that holds only tensors, so it is not opened."
    if not isinstance(found, dict) or not found:
        return f"holds a {type(found).__name__} instead of tensors by name."
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            return f"holds {kind} {str(name)[:60]!r} besides tensors, so it is not read."
        if value.layout is not torch.strided or value.is_quantized:
            return f"holds the tensor {name[:60]!r} in a format other than dense numbers."
    if sum(value.numel() * value.element_size() for value in found.values()) > max_bytes:
        return f"holds tensors of more than {max_bytes:,} bytes."
    tensors = {name: value.detach().clone().contiguous() for name, value in found.items()}
    save_file(tensors, target)
    return None


def main() -> int:
    source, target, max_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if sys.platform == "linux":
        import resource

        limit = SPARE_BYTES + 3 * min(max_bytes, Path(source).stat().st_size)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    reason = write_tensors(source, target, max_bytes)
    if reason is not None:
        print(reason)
    return EXIT_REFUSED if reason else 0


if __name__ == "__main__":
    sys.exit(main())
