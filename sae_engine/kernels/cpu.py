"""A TopK SAE's training step on a CPU, with compiled kernels on the tensors' own memory.

Read `search` for how candidates are found, `codes` for what becomes of them and `rows` for how
gradients and Adam are done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sae_engine import memory
from sae_engine.adam import BETA1, BETA2, EPSILON, Moments
from sae_engine.kernels import codes, rows, search
from sae_engine.kernels.compiled import in_parallel, num_threads
from sae_engine.kernels.products import GROUP
from sae_engine.kernels.search import SEARCHES, Latents, Rounding, Search, Shadow

BLOCK_TOKENS, SCORE_BYTES = 256, 2**24
"""Tokens that a thread searches together, and bytes of their scores, at most. Rounded, they fill no
more than half of its second-level cache; each block reads the whole shadow.
"""
PARTS = 32
"""Parts in which latents are handed to threads; their number decides the order of sums."""


class Codes(NamedTuple):
    """Codes of n tokens."""

    acts: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]
    """int32"""
    kept: NDArray[np.int32]
    """[n]: how many of a row are active, the first ones; the others are 0."""


class Rest(NamedTuple):
    """What codes leave of what they should decode to."""

    residual: Float[Tensor, "n d_in"]
    norms: NDArray[np.float32]
    """[n], of the residual's rows."""
    projections: NDArray[np.float32]
    """[n, k]: residual . W_dec,j for the active latents j."""


class Reconstruction(NamedTuple):
    """Codes, what they leave, and how that enters L."""

    codes: Codes
    rest: Rest
    factor: float
    """The gradient of L in what the codes decode to is so many times the residual."""
    act_grad: float
    """What each activation adds to L's derivative besides."""


class Candidates(NamedTuple):
    """Latents that are looked at exactly, of each of n tokens the first `counts`."""

    latents: NDArray[np.int32]
    """[n, d_sae]"""
    counts: NDArray[np.int32]
    """[n]"""
    scores: NDArray[np.float32]
    """[n, d_sae]: exact, once they are."""

    @staticmethod
    def of(n: int, d_sae: int) -> Candidates:
        """Room for as many as there are latents. So many are rare: only the beginnings of rows are
        touched, in small pages, as PyTorch's memory is.
        """
        latents = torch.empty((n, d_sae), dtype=torch.int32).numpy()
        return Candidates(latents, np.empty(n, np.int32), torch.empty(n, d_sae).numpy())

    def first(self, n: int) -> Candidates:
        return Candidates(self.latents[:n], self.counts[:n], self.scores[:n])


class Scratch(NamedTuple):
    """A thread's room for searching a block of tokens; rows are longer than needed."""

    scores: NDArray[np.float32]
    group_bounds: NDArray[np.float32]
    sums: NDArray[np.int32]

    @staticmethod
    def of(num_tokens: int, num_latents: int) -> Scratch:
        def room(width: int) -> NDArray[np.float32]:
            return memory.zeros((num_tokens, memory.odd_lines(width, np.float32)))

        sums = memory.zeros((num_tokens * 2 * GROUP,), np.int32)
        return Scratch(room(num_latents), room(num_latents // GROUP), sums)


class Gradients(NamedTuple):
    """What `CpuKernels.gradients` found."""

    rows: rows.RowGradients
    code_bias_grads: Float[Tensor, " d_sae"]
    """Sum of each latent's pre-activation gradients, without AuxK's."""
    auxk_bias_grads: Float[Tensor, " d_sae"]
    norm_bound: float
    """At least the norm of the gradients in W_dec and W_enc."""
    encoded_bound: float
    """At least the norm of W_enc^T code_bias_grads."""


class CpuKernels:
    """Encodes, decodes and updates rows of latents in place; all tensors float32, contiguous.

    `W_enc` may be `W_dec` itself (tied). The shadow for the search is made when the encoder has
    been changed from outside, and kept up to date by `update`.
    """

    def __init__(
        self,
        W_dec: Float[Tensor, "d_sae d_in"],
        W_enc: Float[Tensor, "d_sae d_in"],
        k: int,
        search: Search = SEARCHES[0],
    ) -> None:
        self._W_dec, self._W_enc, self._k, self._search = W_dec, W_enc, k, search
        self._tied = W_enc.data_ptr() == W_dec.data_ptr()
        self.d_sae, self.d_in = W_dec.shape
        groups = -(-self.d_sae // (GROUP * search.group_multiple)) * search.group_multiple
        self._padded, pairs = groups * GROUP, search.pairs(self.d_in)
        self._rounding = Rounding.of(search, self.d_in)
        self._shadow = Shadow(
            memory.zeros((groups if pairs else 0, pairs, GROUP), np.int32),
            np.ones(self._padded, np.float32),
            np.zeros(self._padded, np.float32),
        )
        self._norms, self._enc_norms = (np.zeros(self.d_sae, np.float32) for _ in range(2))
        self._seen = (-1, -1)
        self._scratch: dict[int, Scratch] = {}
        self._candidates: dict[str, Candidates] = {}

    def encode(self, centered: Float[Tensor, "n d_in"], b_enc: Float[Tensor, " d_sae"]) -> Codes:
        """Codes of x - b_dec.

        The latents are those that `reference.select_topk` chooses, up to float32 rounding; the
        activations are computed in float32.
        """
        found, _ = self._search_for(centered, b_enc, np.empty(0, np.int32))
        return self._best_of(found, centered, b_enc, self._k)

    def encode_with_dead(
        self,
        centered: Float[Tensor, "n d_in"],
        b_enc: Float[Tensor, " d_sae"],
        dead: Int[Tensor, " D"],
        k_aux: int,
    ) -> tuple[Codes, Codes]:
        """The same, and codes of the `k_aux` strongest among the dead latents that are positive,
        which the same search finds.
        """
        found, positive = self._search_for(centered, b_enc, dead.numpy().astype(np.int32))
        return (
            self._best_of(found, centered, b_enc, self._k),
            self._best_of(positive, centered, b_enc, k_aux),
        )

    def _best_of(self, found: Candidates, centered: Tensor, b_enc: Tensor, k: int) -> Codes:
        """Each token's k best candidates by their exact scores."""
        pairs, n = self._pairs(found.latents, found.counts), len(found.counts)
        x, bias, W_enc = centered.numpy(), b_enc.detach().numpy(), self._W_enc.detach().numpy()
        self._over_latents(
            lambda share: codes.exact_scores(
                share, pairs, x, W_enc, bias, self._norms, found.scores
            )
        )
        best = Codes(torch.empty(n, k), torch.empty(n, k, dtype=torch.int32), np.empty(n, np.int32))
        self._over_tokens(
            n,
            lambda here: codes.keep_best(
                found.latents[here], found.counts[here], found.scores[here], self._norms, k,
                *_part(best, here),
            ),
        )  # fmt: skip
        return best

    def decode(self, code: Codes) -> Float[Tensor, "n d_in"]:
        """What codes decode to, without the bias."""
        decoded = torch.empty(len(code.acts), self.d_in)
        W_dec = self._W_dec.detach().numpy()
        self._over_tokens(
            len(decoded),
            lambda here: codes.decode(*_part(code, here), W_dec, decoded.numpy()[here]),
        )
        return decoded

    def compare(self, code: Codes, target: Float[Tensor, "n d_in"]) -> Rest:
        """What codes leave of `target`, which they should decode to without the bias."""
        n = len(target)
        rest = Rest(
            torch.empty(n, self.d_in),
            np.empty(n, np.float32),
            np.empty(tuple(code.acts.shape), np.float32),
        )
        W_dec = self._W_dec.detach().numpy()
        self._over_tokens(
            n,
            lambda here: codes.compare(
                *_part(code, here), W_dec, target.numpy()[here], rest.residual.numpy()[here],
                rest.norms[here], rest.projections[here],
            ),
        )  # fmt: skip
        return rest

    def _search_for(
        self, centered: Tensor, b_enc: Tensor, dead: NDArray[np.int32]
    ) -> tuple[Candidates, Candidates]:
        """What may be among each token's k best, and which of the dead may be positive."""
        self._refresh()
        norms = self._pad(self._norms)
        offsets = norms * self._pad(b_enc.detach().numpy())
        offsets[self.d_sae :] = -np.inf
        latents = Latents(norms * self._shadow.scales, offsets, norms * self._shadow.errors)
        group_errors = latents.errors.reshape(-1, GROUP).max(axis=1)
        n = len(centered)
        found, positive = self._room("code", n), self._room("dead", n)
        bounds = self._blocks(n)

        def block(part: int, thread: int) -> None:
            here = slice(bounds[part], bounds[part + 1])
            scores, group_bounds, errors = self._scores(centered[here], b_enc, latents, thread)
            codes.find_candidates(
                scores, group_bounds, latents.errors, group_errors, errors, self._k,
                found.latents[here], found.counts[here],
            )  # fmt: skip
            codes.find_positive(
                scores, latents.errors, errors, dead, positive.latents[here], positive.counts[here]
            )

        in_parallel(block, len(bounds) - 1)
        return found, positive

    def _room(self, name: str, n: int) -> Candidates:
        room = self._candidates.get(name)
        if room is None or len(room.counts) < n:
            room = self._candidates[name] = Candidates.of(n, self.d_sae)
        return room.first(n)

    def _pairs(self, latents: NDArray[np.int32], counts: NDArray[np.int32]) -> codes.Pairs:
        total = int(counts.sum())
        pairs = codes.Pairs(
            np.empty(self.d_sae + 1, np.int32), np.empty(total, np.int32), np.empty(total, np.int32)
        )
        codes.sort_by_latent(latents, counts, pairs)
        return pairs

    def _scores(
        self, x: Tensor, b_enc: Tensor, latents: Latents, thread: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Scores of a block of tokens, their groups' bounds, and the tokens' part of the errors."""
        n, multiple = len(x), self._search.token_multiple
        padded = -(-n // multiple) * multiple
        scratch = self._scratch.get(thread)
        if scratch is None or len(scratch.scores) < padded:
            scratch = self._scratch[thread] = Scratch.of(padded, self._padded)
        scores, group_bounds = scratch.scores[:padded], scratch.group_bounds[:padded]
        if self._search is Search.FLOATS:
            raw = torch.addmm(b_enc.detach(), x, self._W_enc.detach().T).numpy()
            scores[:n, : self.d_sae] = raw * self._norms
            scores[:, self.d_sae :] = -np.inf
            search.float_group_bounds(scores[:n], self._padded // GROUP, group_bounds[:n])
            return scores, group_bounds, np.zeros(n, np.float32)
        tokens = search.round_tokens(x.numpy(), padded, self._search, self._rounding)
        find = search.tile_scores if self._search is Search.TILES else search.integer_scores
        find(tokens, self._shadow.panels, latents, scratch.sums, scores, group_bounds)
        return scores, group_bounds, tokens.errors

    def gradients(
        self,
        centered: Float[Tensor, "n d_in"],
        code: Reconstruction,
        auxk: Reconstruction | None,
        *,
        normalize: bool,
    ) -> Gradients:
        """All that `update` needs, from the code's reconstruction of x - b_dec and AuxK's.

        With `normalize`, decoder gradients lose their part along the row.
        """
        x = centered.numpy()
        x_norms = np.empty(len(x), np.float32)
        self._over_tokens(len(x), lambda here: codes.row_norms(x[here], x_norms[here]))
        of_code, code_bias, bound = self._by_pairs(code, x_norms)
        if auxk is None:
            none = codes.Pairs(np.zeros(self.d_sae + 1, np.int32), *[np.empty(0, np.int32)] * 2)
            of_auxk, auxk_bias = of_code._replace(pairs=none), torch.zeros(self.d_sae)
        else:
            of_auxk, auxk_bias, more = self._by_pairs(auxk, x_norms)
            bound += more
        gradients = rows.RowGradients(of_code, of_auxk, x, normalize, self._tied)
        encoded_bound = float(np.abs(code_bias.numpy()) @ self._enc_norms)
        return Gradients(gradients, code_bias, auxk_bias, bound, encoded_bound)

    def _by_pairs(
        self, made: Reconstruction, x_norms: NDArray[np.float32]
    ) -> tuple[rows.PairGradients, Tensor, float]:
        """A reconstruction's gradients, those of the biases, and a bound of the rows' norm."""
        (acts, indices, kept), rest, factor, act_grad = made
        pairs = self._pairs(indices.numpy(), kept)
        weights, pre_grads = (np.empty(len(pairs.tokens), np.float32) for _ in range(2))
        gradients = rows.PairGradients(pairs, rest.residual.numpy(), weights, pre_grads)
        bias_grads = torch.empty(self.d_sae)
        squares = self._over_latents(
            lambda share: rows.pair_gradients(
                share, gradients, acts.numpy(), rest.projections, factor, act_grad, rest.norms,
                x_norms, bias_grads.numpy(),
            )
        )  # fmt: skip
        return gradients, bias_grads, squares**0.5

    def squared_norm(
        self, found: Gradients, dec: Moments, enc: Moments
    ) -> tuple[float, Float[Tensor, " d_in"]]:
        """Squared norm of the gradients in W_dec and W_enc, and W_enc^T code_bias_grads."""
        weights, sums = self._weights(dec, enc), self._room_for_sums()
        bias_grads = found.code_bias_grads.numpy()
        squares = self._over_latents(
            lambda share: rows.squared_norm(share, found.rows, weights, bias_grads, sums)
        )
        return squares, torch.from_numpy(sums.sum(0))

    def update(
        self, found: Gradients, dec: Moments, enc: Moments, *, clip: float, lr: float, step: int
    ) -> Float[Tensor, " d_in"]:
        """Adam's step number `step` (from 1) on all rows, gradients multiplied by `clip`.

        Returns W_enc^T code_bias_grads, of the encoder as it was before.
        """
        weights, sums = self._weights(dec, enc), self._room_for_sums()
        bias_grads = found.code_bias_grads.numpy()
        adam = rows.AdamStep(
            clip, lr / (1 - BETA1**step), (1 - BETA2**step) ** -0.5, BETA1, BETA2, EPSILON
        )
        self._over_latents(
            lambda share: rows.update(
                share, found.rows, weights, adam, bias_grads, sums, self._norms, self._enc_norms,
                self._rounding, self._shadow,
            )
        )  # fmt: skip
        return torch.from_numpy(sums.sum(0))

    def _weights(self, dec: Moments, enc: Moments) -> rows.Weights:
        return rows.Weights(
            self._W_dec.detach().numpy(), dec.mean.numpy(), dec.square.numpy(),
            self._W_enc.detach().numpy(), enc.mean.numpy(), enc.square.numpy(),
        )  # fmt: skip

    def _room_for_sums(self) -> NDArray[np.float32]:
        return np.empty((len(self._part_bounds()) - 1, self.d_in), np.float32)

    def _refresh(self) -> None:
        """Make norms and shadow again if the weights were changed by anything but `update`."""
        now = (self._W_dec._version, self._W_enc._version)
        if now == self._seen:
            return
        self._seen = now
        codes.row_norms(self._W_dec.detach().numpy(), self._norms)
        W_enc = self._W_enc.detach().numpy()
        self._over_latents(
            lambda share: rows.write_shadow(
                share, W_enc, self._enc_norms, self._rounding, self._shadow
            )
        )

    def _blocks(self, n: int) -> list[int]:
        """Where blocks of tokens begin: a multiple of the threads, of nearly equal size."""
        threads = num_threads()
        of_cache = memory.second_level_cache() // 2 // (2 * self.d_in)
        most = min(BLOCK_TOKENS, of_cache, SCORE_BYTES // (4 * self._padded))
        rounds = max(1, round(n / threads / max(1, most)))
        size = -(-n // (threads * rounds))
        multiple = self._search.token_multiple
        size = -(-size // multiple) * multiple
        return [*range(0, n, size), n]

    def _over_tokens(self, n: int, work: Callable[[slice], None]) -> None:
        """Share n tokens between the threads, by blocks."""
        bounds = self._blocks(n)
        in_parallel(lambda part, _: work(slice(bounds[part], bounds[part + 1])), len(bounds) - 1)

    def _over_latents(self, work: Callable[[codes.Share], None]) -> float:
        """Share all latents between the threads; the sum of the parts' sums."""
        bounds = self._part_bounds()
        sums = np.zeros(len(bounds) - 1)
        threads = min(num_threads(), len(sums))
        in_parallel(lambda first, _: work(codes.Share(bounds, sums, first, threads)), threads)
        return float(sums.sum())

    def _part_bounds(self) -> NDArray[np.int64]:
        size = -(-self._padded // GROUP // PARTS) * GROUP
        return np.array([*range(0, self.d_sae, size), self.d_sae])

    def _pad(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.pad(values, (0, self._padded - self.d_sae))


def _part(
    code: Codes, here: slice
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Some tokens' codes, as kernels take them."""
    return code.acts.numpy()[here], code.indices.numpy()[here], code.kept[here]
