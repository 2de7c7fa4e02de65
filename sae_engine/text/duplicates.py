"""How much of one text occurs in another, by runs of 13 words.

Fed and read by `stdlib`, to keep copies of training text out of the held-out text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt64

from sae_engine.text.ngrams import run_hashes


def shared_fractions(documents: Sequence[str], others: Sequence[str]) -> list[float]:
    """For each document, the fraction of its runs of 13 words that also occur in `others`; 0 for a
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
    return run_hashes(words[None])[0]
