"""The search for each token's candidates, with the state it keeps from step to step: the encoder's
shadow, the norms of the rows, and work space. Used by `step`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_engine.kernels import memory
from sae_engine.kernels.compiled import in_parallel
from sae_engine.kernels.cpu import candidates, search, vectors
from sae_engine.kernels.cpu.division import Division
from sae_engine.kernels.cpu.products import GROUP
from sae_engine.kernels.cpu.search import Latents, Rounding, Search, Shadow


class Candidates(NamedTuple):
    """Latents whose exact scores are computed: for token r, the first counts[r] of latents[r]."""

    latents: NDArray[np.int32]
    """[n, d_sae]"""
    counts: NDArray[np.int32]
    """[n]"""
    scores: NDArray[np.float32]
    """[n, d_sae]: exact scores, to be filled in."""

    @staticmethod
    def empty(n: int, d_sae: int) -> Candidates:
        """Space for all latents as candidates. Few are the rule, so only the start of each row is
        ever accessed; hence PyTorch's memory, which is in small pages.
        """
        latents = torch.empty((n, d_sae), dtype=torch.int32).numpy()
        return Candidates(latents, np.empty(n, np.int32), torch.empty(n, d_sae).numpy())

    def first(self, n: int) -> Candidates:
        return Candidates(self.latents[:n], self.counts[:n], self.scores[:n])


class Scratch(NamedTuple):
    """A thread's work space for a block of tokens; see `memory.odd_lines` for the row lengths."""

    scores: NDArray[np.float32]
    group_bounds: NDArray[np.float32]
    sums: NDArray[np.int32]

    @staticmethod
    def new(num_tokens: int, num_latents: int) -> Scratch:
        def rows(width: int) -> NDArray[np.float32]:
            return memory.zeros((num_tokens, memory.odd_lines(width, np.float32)))

        sums = memory.zeros((num_tokens * 2 * GROUP,), np.int32)
        return Scratch(rows(num_latents), rows(num_latents // GROUP), sums)


class Searcher:
    """Finds candidates for the k best scores (x . W_enc,j + b_enc,j) |W_dec,j| of each token, or
    those without |W_dec,j| (`norms` are 1 then).

    `norms` (of decoder rows) and `enc_norms` [d_sae] and `shadow` are computed again when PyTorch
    has changed the weights; `rows.update`, which PyTorch does not notice, updates them itself.
    """

    def __init__(
        self, W_dec: Tensor, W_enc: Tensor, k: int, how: Search, ranks_by_norm: bool = True
    ) -> None:
        self._W_dec, self._W_enc, self._k, self._how = W_dec, W_enc, k, how
        self._ranks_by_norm = ranks_by_norm
        d_sae, d_in = W_enc.shape
        groups = -(-d_sae // (GROUP * how.group_multiple)) * how.group_multiple
        pairs = how.pairs(d_in)
        self.division = Division(d_in, d_sae, groups * GROUP, how.token_multiple)
        self.rounding = Rounding.of(how, d_in)
        self.shadow = Shadow(
            memory.zeros((groups if pairs else 0, pairs, GROUP), np.int32),
            np.ones(groups * GROUP, np.float32),
            np.zeros(groups * GROUP, np.float32),
        )
        self.norms, self.enc_norms = (np.zeros(d_sae, np.float32) for _ in range(2))
        self._versions = (-1, -1)
        self._scratch: dict[int, Scratch] = {}
        self._candidates: dict[str, Candidates] = {}

    def find(
        self, centered: Tensor, b_enc: Tensor, dead: NDArray[np.int32]
    ) -> tuple[Candidates, Candidates]:
        """Latents that may be among each token's k best, and those of `dead` that may be positive.

        The next call overwrites both.
        """
        self._refresh()
        norms = self._pad(self.norms)
        offsets = norms * self._pad(b_enc.detach().numpy())
        offsets[self.division.d_sae :] = -np.inf
        latents = Latents(norms * self.shadow.scales, offsets, norms * self.shadow.errors)
        group_errors = latents.errors.reshape(-1, GROUP).max(axis=1)
        n = len(centered)
        found, positive = self._candidates_for("code", n), self._candidates_for("dead", n)
        bounds = self.division.token_bounds(n)

        def block(part: int, thread: int) -> None:
            here = slice(bounds[part], bounds[part + 1])
            scores, group_bounds, errors = self._scores(centered[here], b_enc, latents, thread)
            candidates.find_candidates(
                scores, group_bounds, latents.errors, group_errors, errors, self._k,
                found.latents[here], found.counts[here],
            )  # fmt: skip
            candidates.find_positive(
                scores, latents.errors, errors, dead, positive.latents[here], positive.counts[here]
            )

        in_parallel(block, len(bounds) - 1)
        return found, positive

    def _refresh(self) -> None:
        """Compute norms and shadow if anything but `rows.update` has changed the weights."""
        versions = (self._W_dec._version, self._W_enc._version)
        if versions == self._versions:
            return
        self._versions = versions
        if self._ranks_by_norm:
            vectors.row_norms(self._W_dec.detach().numpy(), self.norms)
        else:
            self.norms.fill(1)
        W_enc = self._W_enc.detach().numpy()
        self.division.over_latents(
            lambda share: search.write_shadow(
                share, W_enc, self.enc_norms, self.rounding, self.shadow
            )
        )

    def _scores(
        self, x: Tensor, b_enc: Tensor, latents: Latents, thread: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """A block's scores, the bounds of their groups, and the tokens' factors of the errors."""
        n, multiple = len(x), self._how.token_multiple
        padded = -(-n // multiple) * multiple
        scratch = self._scratch.get(thread)
        if scratch is None or len(scratch.scores) < padded:
            scratch = self._scratch[thread] = Scratch.new(padded, self.division.padded)
        scores, group_bounds = scratch.scores[:padded], scratch.group_bounds[:padded]
        if self._how is Search.FLOATS:
            raw = torch.addmm(b_enc.detach(), x, self._W_enc.detach().T).numpy()
            scores[:n, : self.division.d_sae] = raw * self.norms
            scores[:, self.division.d_sae :] = -np.inf
            search.float_group_bounds(scores[:n], self.division.padded // GROUP, group_bounds[:n])
            return scores, group_bounds, np.zeros(n, np.float32)
        tokens = search.round_tokens(x.numpy(), padded, self._how, self.rounding)
        find = search.tile_scores if self._how is Search.TILES else search.integer_scores
        find(tokens, self.shadow.panels, latents, scratch.sums, scores, group_bounds)
        return scores, group_bounds, tokens.errors

    def _candidates_for(self, name: str, n: int) -> Candidates:
        kept = self._candidates.get(name)
        if kept is None or len(kept.counts) < n:
            kept = self._candidates[name] = Candidates.empty(n, self.division.d_sae)
        return kept.first(n)

    def _pad(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.pad(values, (0, self.division.padded - self.division.d_sae))
