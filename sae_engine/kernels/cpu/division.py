"""Division of a step's work on tokens and on latents among threads. Used by `step`, `searcher`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_engine.kernels import memory
from sae_engine.kernels.compiled import in_parallel, num_threads
from sae_engine.kernels.cpu.products import GROUP

BLOCK_TOKENS, SCORE_BYTES = 256, 2**24
"""Limits of a block, the tokens that a thread searches together: their number, and the bytes of
their scores. In addition, the rounded tokens fill about half of the second-level cache at most;
larger blocks are better, because each block reads the whole shadow of the encoder.
"""
PARTS = 32
"""Parts into which latents are divided; fixed, because it determines the order of float sums."""


class Share(NamedTuple):
    """One thread's share of the latents: every `step`-th part from `first` on.

    Kernels are called once per share, not once per part, because each call needs the GIL.
    """

    bounds: Any
    """int64 [parts + 1]: the first latent of each part, a multiple of GROUP."""
    sums: Any
    """float64 [parts]: output of the kernels that sum something over a part's latents."""
    first: int
    step: int


class Division(NamedTuple):
    """Divides the work on an SAE of a given size."""

    d_in: int
    d_sae: int
    padded: int
    """d_sae, rounded up to whole groups"""
    token_multiple: int
    """Blocks of tokens are multiples of this, except the last."""

    def token_bounds(self, n: int) -> list[int]:
        """The first token of each block, and n: about equal blocks, as many on each thread."""
        threads = num_threads()
        of_cache = memory.second_level_cache() // 2 // (2 * self.d_in)
        most = min(BLOCK_TOKENS, of_cache, SCORE_BYTES // (4 * self.padded))
        rounds = max(1, round(n / threads / max(1, most)))
        size = -(-n // (threads * rounds))
        size = -(-size // self.token_multiple) * self.token_multiple
        return [*range(0, n, size), n]

    def over_tokens(self, n: int, work: Callable[[slice], None]) -> None:
        """Call `work` for each block of n tokens, on all threads."""
        bounds = self.token_bounds(n)
        in_parallel(lambda part, _: work(slice(bounds[part], bounds[part + 1])), len(bounds) - 1)

    def over_latents(self, work: Callable[[Share], None]) -> float:
        """Call `work` for each share of the latents, on all threads; returns the sum of `sums`."""
        bounds = self.latent_bounds()
        sums = np.zeros(len(bounds) - 1)
        threads = min(num_threads(), len(sums))
        in_parallel(lambda first, _: work(Share(bounds, sums, first, threads)), threads)
        return float(sums.sum())

    def latent_bounds(self) -> NDArray[np.int64]:
        """The first latent of each part, and d_sae; the same for any number of threads."""
        size = -(-self.padded // GROUP // PARTS) * GROUP
        return np.array([*range(0, self.d_sae, size), self.d_sae])
