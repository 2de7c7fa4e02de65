"""How a step's work on tokens and on latents is divided between the threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_engine.kernels import memory
from sae_engine.kernels.compiled import in_parallel, num_threads
from sae_engine.kernels.cpu.products import GROUP

BLOCK_TOKENS, SCORE_BYTES = 256, 2**24
"""Tokens that a thread searches together, and bytes of their scores, about at most. Rounded, they
fill about half of its second-level cache; each block reads the whole shadow.
"""
PARTS = 32
"""Parts in which latents are handed to threads; their number decides the order of sums."""


class Share(NamedTuple):
    """One thread's share of all latents: of their parts, every `step`-th from `first` on.

    A call for each share and not for each part, because calls take the interpreter's lock.
    """

    bounds: Any
    """int64 [parts + 1]: where each part begins, always a group of latents."""
    sums: Any
    """float64 [parts]: what a kernel sums over a part's latents, if it does."""
    first: int
    step: int


class Division(NamedTuple):
    """For an SAE whose latents are padded to whole groups and whose tokens go by multiples."""

    d_in: int
    d_sae: int
    padded: int
    token_multiple: int

    def token_bounds(self, n: int) -> list[int]:
        """Where blocks of tokens begin: a multiple of the threads, of nearly equal size."""
        threads = num_threads()
        of_cache = memory.second_level_cache() // 2 // (2 * self.d_in)
        most = min(BLOCK_TOKENS, of_cache, SCORE_BYTES // (4 * self.padded))
        rounds = max(1, round(n / threads / max(1, most)))
        size = -(-n // (threads * rounds))
        size = -(-size // self.token_multiple) * self.token_multiple
        return [*range(0, n, size), n]

    def over_tokens(self, n: int, work: Callable[[slice], None]) -> None:
        """Share n tokens between the threads, by blocks."""
        bounds = self.token_bounds(n)
        in_parallel(lambda part, _: work(slice(bounds[part], bounds[part + 1])), len(bounds) - 1)

    def over_latents(self, work: Callable[[Share], None]) -> float:
        """Share all latents between the threads; the sum of the parts' sums."""
        bounds = self.latent_bounds()
        sums = np.zeros(len(bounds) - 1)
        threads = min(num_threads(), len(sums))
        in_parallel(lambda first, _: work(Share(bounds, sums, first, threads)), threads)
        return float(sums.sum())

    def latent_bounds(self) -> NDArray[np.int64]:
        """Where parts of latents begin, always a group; the same for any number of threads."""
        size = -(-self.padded // GROUP // PARTS) * GROUP
        return np.array([*range(0, self.d_sae, size), self.d_sae])
