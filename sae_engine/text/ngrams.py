"""Hashes of runs of 13 tokens or words, the length by which texts are compared (Brown et al. 2020,
appendix C).

Read by `duplicates` for words and by `overlap` for tokens.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt64

RUN_LENGTH = 13
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def run_hashes(rows: UInt64[np.ndarray, "rows n"]) -> UInt64[np.ndarray, "rows k"]:
    """The hash of each run of `RUN_LENGTH` items within a row; none for shorter rows.

    Hashes of 1, 2, 4, 8 items are joined from two halves each, and then to one of 13.
    """
    powers = [rows]
    while 2 ** len(powers) <= RUN_LENGTH:
        powers.append(_joined(powers[-1], powers[-1], 2 ** (len(powers) - 1)))
    runs, length = powers[-1], 2 ** (len(powers) - 1)
    for exponent in reversed(range(len(powers) - 1)):
        if RUN_LENGTH & 2**exponent:
            runs, length = _joined(runs, powers[exponent], length), length + 2**exponent
    return runs


def _joined(
    first: UInt64[np.ndarray, "rows n"], second: UInt64[np.ndarray, "rows m"], offset: int
) -> UInt64[np.ndarray, "rows k"]:
    """Hashes of the runs that consist of one in `first` and that in `second` `offset` later."""
    later = second[:, offset:]
    mixed = first[:, : later.shape[1]] * _MULTIPLIER
    mixed ^= mixed >> np.uint64(29)
    mixed += later
    mixed *= _MULTIPLIER
    return mixed ^ (mixed >> np.uint64(32))
