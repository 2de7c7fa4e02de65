"""Memory for large matrices on a CPU, as its caches and address tables like it.

It begins with a line of the cache, so that vectors and tiles do not lie across two of them, and is
in pages of 2 MiB where Linux has them: NumPy asks for them, PyTorch does not. Used by `kernels`,
`adam` and `steps`, which read rows of such matrices in no order.
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

LINE = 64
"""Bytes of a line of the cache."""


@cache
def second_level_cache() -> int:
    """Bytes of a core's second-level cache; 512 KiB where it does not say."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text("ascii").strip()
        return int(size.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 2**19


def zeros(shape: tuple[int, ...], kind: type[np.generic] = np.float32) -> NDArray[Any]:
    """Zeros; what is never touched takes no memory."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    raw = np.zeros(size + LINE, np.uint8)
    first = -raw.ctypes.data % LINE
    return raw[first : first + size].view(kind).reshape(shape)


def odd_lines(count: int, kind: type[np.generic]) -> int:
    """Length of rows for at least so many numbers: whole lines of the cache, and an odd number of
    them. Then the same place in several rows, used together, lies in different sets of the cache.
    """
    lines = -(-count * np.dtype(kind).itemsize // LINE)
    return (lines | 1) * LINE // np.dtype(kind).itemsize


def zeros_like(tensor: Tensor) -> Tensor:
    """Zeros of a tensor's shape on its device, float32."""
    if tensor.device.type != "cpu":
        return torch.zeros_like(tensor.detach())
    return torch.from_numpy(zeros(tuple(tensor.shape)))


@torch.no_grad()
def settle_(module: nn.Module) -> None:
    """Move a module's float32 parameters to such memory, one after the other."""
    for parameter in module.parameters():
        parameter.data = zeros_like(parameter).copy_(parameter)
