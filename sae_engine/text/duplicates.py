"""How much of one text stands in another, by runs of 13 words (Brown et al. 2020, appendix C).

Fed and read by `stdlib`, to keep copies of training text out of the held-out text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64

WORDS_PER_RUN = 13

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def shared_fractions(documents: Sequence[str], others: Sequence[str]) -> list[float]:
    """For each document, the fraction of its runs of 13 words that also stand in `others`; 0 for a
    shorter document. Runs are compared by 64-bit hashes.
    """
    known = np.sort(np.concatenate([_runs(other) for other in others]))
    fractions: list[float] = []
    for document in documents:
        runs = _runs(document)
        if len(runs) and len(known):
            nearest = known[np.minimum(np.searchsorted(known, runs), len(known) - 1)]
            fractions.append(float((nearest == runs).mean()))
        else:
            fractions.append(0.0)
    return fractions


def _runs(text: str) -> UInt64[np.ndarray, " runs"]:
    """A hash of each run of words; it differs between processes, as `hash` does."""
    words = np.fromiter(map(hash, text.split()), np.int64).view(np.uint64)
    hashes = np.zeros(max(0, len(words) - WORDS_PER_RUN + 1), np.uint64)
    for place in range(WORDS_PER_RUN):
        hashes = (hashes ^ (hashes >> np.uint64(29))) * _MULTIPLIER
        hashes += words[place : place + len(hashes)]
    return hashes
