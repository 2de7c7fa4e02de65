"""How the GPU kernels are compiled: by Triton, at their first call.

With TRITON_INTERPRET=1 set before Triton is imported, they run as Python on the CPU instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

triton_kernel: Callable[..., Any] = triton.jit
"""Compile a function for the GPU: `kernel[grid](*arguments)` runs one program per point of the
grid. Inside another kernel, a call is inlined.
"""


def power_of_2(size: int) -> int:
    """The smallest power of 2 >= `size`, as Triton requires for the sizes of blocks."""
    return 1 << (size - 1).bit_length()


def blocks(size: int, block: int) -> int:
    """Number of blocks that cover `size`."""
    return -(-size // block)
