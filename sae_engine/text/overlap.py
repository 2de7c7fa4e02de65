"""How much of the held-out text also occurs in the training text, by runs of 13 tokens.

`activations` passes it every row that a run trains on; `training` reports the share as a metric and
keeps what was seen in checkpoints.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np
from jaxtyping import Bool, Int, UInt64

from sae_engine.text.ngrams import RUN_LENGTH, run_hashes

MAX_TOKENS = 2**20
"""Held-out tokens that are compared; the first ones, if there are more."""

_FILTER_BITS = 24


class TextOverlap:
    """Which runs of 13 tokens of the held-out text have been seen in training text.

    Runs are within a row, without BOS, pad, eos and context, and compared by 64-bit hashes.
    """

    def __init__(self, ids: Int[np.ndarray, "rows ctx"], at: Bool[np.ndarray, "rows ctx"]) -> None:
        """The held-out rows, and where in them the tokens are that count."""
        num_rows = max(1, MAX_TOKENS // ids.shape[1])
        runs = _hashes(ids[:num_rows], at[:num_rows])
        self._runs, self._counts = np.unique(runs, return_counts=True)
        self._id = f"{zlib.crc32(self._runs.tobytes()):08x}"
        self._seen = np.zeros(len(self._runs), np.bool_)
        self._may_be = np.zeros(2**_FILTER_BITS, np.bool_)
        self._may_be[_short(self._runs)] = True
        self._any_read = False

    @property
    def share(self) -> float | None:
        """The share of the held-out runs seen so far; None before any text was read, and if there
        are no runs.
        """
        if not self._any_read or not len(self._runs):
            return None
        return float(self._counts[self._seen].sum() / self._counts.sum())

    def read_(self, ids: Int[np.ndarray, "rows ctx"], at: Bool[np.ndarray, "rows ctx"]) -> None:
        """Look at rows of training text."""
        self._any_read = True
        runs = _hashes(ids, at)
        runs = runs[self._may_be[_short(runs)]]
        places = np.searchsorted(self._runs, runs)
        found = places < len(self._runs)
        found[found] = self._runs[places[found]] == runs[found]
        self._seen[places[found]] = True

    def state(self) -> str:
        """What has been seen, for `restore_`."""
        packed = zlib.compress(np.packbits(self._seen).tobytes())
        return f"{self._id}:{base64.b64encode(packed).decode()}" if self._any_read else ""

    def restore_(self, state: str) -> None:
        """Add what has been seen before, unless it was of other held-out text."""
        its_id, _, packed = state.partition(":")
        if its_id == self._id:
            bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
            self._seen |= np.unpackbits(bits, count=len(self._seen)).astype(np.bool_)
            self._any_read = True


def _hashes(
    ids: Int[np.ndarray, "rows ctx"], at: Bool[np.ndarray, "rows ctx"]
) -> UInt64[np.ndarray, " n"]:
    """The hash of each run of tokens that all count."""
    before = np.cumsum(at, axis=1)
    before = np.concatenate([np.zeros((len(at), 1), before.dtype), before], axis=1)
    all_count = before[:, RUN_LENGTH:] - before[:, :-RUN_LENGTH] == RUN_LENGTH
    return run_hashes(ids.astype(np.uint64))[all_count]


def _short(runs: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The highest bits of each hash, by which most runs are found to be in no held-out text."""
    return runs >> np.uint64(64 - _FILTER_BITS)
