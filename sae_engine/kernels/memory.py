"""Memory for large matrices on a CPU: aligned to cache lines and, on Linux, in pages of 2 MiB.

Aligned, a vector or tile does not straddle two cache lines; large pages speed up access to rows in
random order. NumPy requests large pages from Linux, PyTorch does not, so the memory is NumPy's.
Used by the CPU kernels, `adam` and `sae`.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LINE_BYTES = 64
"""Size of a cache line."""


@cache
def second_level_cache() -> int:
    """Bytes of a core's second-level cache; 512 KiB if the system does not report them."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text("ascii").strip()
        return int(size.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 2**19


def zeros(shape: tuple[int, ...], kind: type[np.generic] = np.float32) -> NDArray[Any]:
    """An aligned array of zeros; pages never accessed take no memory."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    raw = np.zeros(size + LINE_BYTES, np.uint8)
    first = -raw.ctypes.data % LINE_BYTES
    return raw[first : first + size].view(kind).reshape(shape)


def odd_lines(count: int, kind: type[np.generic]) -> int:
    """Row length for at least `count` numbers that fills an odd number of whole cache lines.

    The same column of consecutive rows, accessed together, then maps to different cache sets.
    """
    lines = -(-count * np.dtype(kind).itemsize // LINE_BYTES)
    return (lines | 1) * LINE_BYTES // np.dtype(kind).itemsize


def zeros_like(tensor: Tensor) -> Tensor:
    """Float32 zeros of a tensor's shape on its device; aligned on a CPU."""
    if tensor.device.type != "cpu":
        return torch.zeros_like(tensor.detach())
    return torch.from_numpy(zeros(tuple(tensor.shape)))


@torch.no_grad()
def settle_(module: nn.Module) -> None:
    """Move a module's float32 parameters to aligned memory, one at a time."""
    for parameter in module.parameters():
        parameter.data = zeros_like(parameter).copy_(parameter)
