"""A TopK SAE's training step on a CPU: compiled kernels that work in place on PyTorch's memory.

`searcher` finds a code's latents; `search` and `candidates`, which it calls, explain how. `codes`
evaluates and decodes them, and `rows` computes gradients and Adam. Used by `sae.compiled_step` and
`sae.inference`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sae_engine.kernels.adam import AdamStep, Moments
from sae_engine.kernels.cpu import codes, rows, vectors
from sae_engine.kernels.cpu.search import SEARCHES, Search
from sae_engine.kernels.cpu.searcher import Candidates, Searcher


class Codes(NamedTuple):
    """Codes of n tokens."""

    acts: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]
    """int32"""
    kept: NDArray[np.int32]
    """[n]: number of active latents; they come first in a row, and the other activations are 0."""


class Rest(NamedTuple):
    """The residual of codes: target - decoded."""

    residual: Float[Tensor, "n d_in"]
    norms: NDArray[np.float32]
    """[n]: norms of the residual's rows."""
    projections: NDArray[np.float32]
    """[n, k]: residual . W_dec,j for the active latents j."""


class Reconstruction(NamedTuple):
    """Codes, their residual, and how both enter the loss L."""

    codes: Codes
    rest: Rest
    factor: float
    """dL/d(decoded) = factor * residual"""
    act_grad: float
    """Derivative of L with respect to each activation, apart from the reconstruction: L1's."""


class Gradients(NamedTuple):
    """Result of `CpuKernels.gradients`."""

    rows: rows.RowGradients
    code_bias_grads: Float[Tensor, " d_sae"]
    """Sums of each latent's pre-activation gradients, without AuxK's."""
    auxk_bias_grads: Float[Tensor, " d_sae"]
    norm_bound: float
    """Upper bound of the norm of the gradients in W_dec and W_enc."""
    centering_bound: float
    """Upper bound of the norm of W_enc^T code_bias_grads."""


class CpuKernels:
    """Encodes, decodes, and updates weights in place; all tensors are float32 and contiguous.

    `W_enc` may be `W_dec` itself (tied). Without `ranks_by_norm`, a code has the k largest
    pre-activations; weights are not updated then.
    """

    def __init__(
        self,
        W_dec: Float[Tensor, "d_sae d_in"],
        W_enc: Float[Tensor, "d_sae d_in"],
        k: int,
        search: Search = SEARCHES[0],
        *,
        ranks_by_norm: bool = True,
    ) -> None:
        self._W_dec, self._W_enc, self._k = W_dec, W_enc, k
        self._tied = W_enc.data_ptr() == W_dec.data_ptr()
        self._searcher = Searcher(W_dec, W_enc, k, search, ranks_by_norm)
        self._division = self._searcher.division
        self.d_sae, self.d_in = W_dec.shape

    def encode(self, centered: Float[Tensor, "n d_in"], b_enc: Float[Tensor, " d_sae"]) -> Codes:
        """Codes of x - b_dec: the latents that `reference.select_topk` selects, up to float32
        rounding.
        """
        found, _ = self._searcher.find(centered, b_enc, np.empty(0, np.int32))
        return self._best_of(found, centered, b_enc, self._k)

    def encode_with_dead(
        self,
        centered: Float[Tensor, "n d_in"],
        b_enc: Float[Tensor, " d_sae"],
        dead: Int[Tensor, " D"],
        k_aux: int,
    ) -> tuple[Codes, Codes]:
        """The same codes, and those of the up to `k_aux` strongest positive latents of `dead`, from
        one search.
        """
        found, positive = self._searcher.find(centered, b_enc, dead.numpy().astype(np.int32))
        return (
            self._best_of(found, centered, b_enc, self._k),
            self._best_of(positive, centered, b_enc, k_aux),
        )

    def _best_of(self, found: Candidates, centered: Tensor, b_enc: Tensor, k: int) -> Codes:
        """Each token's k best candidates by their exact scores."""
        pairs, n = self._pairs(found.latents, found.counts), len(found.counts)
        x, bias, W_enc = centered.numpy(), b_enc.detach().numpy(), self._W_enc.detach().numpy()
        norms = self._searcher.norms
        self._division.over_latents(
            lambda share: codes.exact_scores(share, pairs, x, W_enc, bias, norms, found.scores)
        )
        best = Codes(torch.empty(n, k), torch.empty(n, k, dtype=torch.int32), np.empty(n, np.int32))
        self._division.over_tokens(
            n,
            lambda here: codes.keep_best(
                found.latents[here], found.counts[here], found.scores[here], norms, k,
                *_part(best, here),
            ),
        )  # fmt: skip
        return best

    def decode(self, code: Codes) -> Float[Tensor, "n d_in"]:
        """The decoded codes, without the bias."""
        decoded = torch.empty(len(code.acts), self.d_in)
        W_dec = self._W_dec.detach().numpy()
        self._division.over_tokens(
            len(decoded),
            lambda here: codes.decode(*_part(code, here), W_dec, decoded.numpy()[here]),
        )
        return decoded

    def compare(self, code: Codes, target: Float[Tensor, "n d_in"]) -> Rest:
        """The residual of codes whose decoding, without the bias, approximates `target`."""
        n = len(target)
        rest = Rest(
            torch.empty(n, self.d_in),
            np.empty(n, np.float32),
            np.empty(tuple(code.acts.shape), np.float32),
        )
        W_dec = self._W_dec.detach().numpy()
        self._division.over_tokens(
            n,
            lambda here: codes.compare(
                *_part(code, here), W_dec, target.numpy()[here], rest.residual.numpy()[here],
                rest.norms[here], rest.projections[here],
            ),
        )  # fmt: skip
        return rest

    def _pairs(self, latents: NDArray[np.int32], counts: NDArray[np.int32]) -> codes.Pairs:
        total = int(counts.sum())
        pairs = codes.Pairs(
            np.empty(self.d_sae + 1, np.int32),
            np.empty(total, np.int32),
            np.empty(total, np.int32),
        )
        codes.sort_by_latent(latents, counts, pairs)
        return pairs

    def gradients(
        self,
        centered: Float[Tensor, "n d_in"],
        code: Reconstruction,
        auxk: Reconstruction | None,
        *,
        normalize: bool,
    ) -> Gradients:
        """All gradients, from the code's reconstruction of x - b_dec and AuxK's of the residual.

        With `normalize`, decoder gradients lose their component along the row.
        """
        x = centered.numpy()
        x_norms = np.empty(len(x), np.float32)
        self._division.over_tokens(len(x), lambda here: vectors.row_norms(x[here], x_norms[here]))
        of_code, code_bias, bound = self._by_pairs(code, x_norms)
        if auxk is None:
            none = codes.Pairs(np.zeros(self.d_sae + 1, np.int32), *[np.empty(0, np.int32)] * 2)
            of_auxk, auxk_bias = of_code._replace(pairs=none), torch.zeros(self.d_sae)
        else:
            of_auxk, auxk_bias, more = self._by_pairs(auxk, x_norms)
            bound += more
        gradients = rows.RowGradients(of_code, of_auxk, x, normalize, self._tied)
        centering_bound = float(np.abs(code_bias.numpy()) @ self._searcher.enc_norms)
        return Gradients(gradients, code_bias, auxk_bias, bound, centering_bound)

    def _by_pairs(
        self, made: Reconstruction, x_norms: NDArray[np.float32]
    ) -> tuple[rows.PairGradients, Tensor, float]:
        """A reconstruction's gradients by pairs, those of the pre-activation biases, and an upper
        bound of the norm of the weights' gradients.
        """
        (acts, indices, kept), rest, factor, act_grad = made
        pairs = self._pairs(indices.numpy(), kept)
        weights, pre_grads = (np.empty(len(pairs.tokens), np.float32) for _ in range(2))
        gradients = rows.PairGradients(pairs, rest.residual.numpy(), weights, pre_grads)
        bias_grads = torch.empty(self.d_sae)
        squares = self._division.over_latents(
            lambda share: rows.pair_gradients(
                share, gradients, acts.numpy(), rest.projections, factor, act_grad, rest.norms,
                x_norms, bias_grads.numpy(),
            )
        )  # fmt: skip
        return gradients, bias_grads, squares**0.5

    def squared_norm(self, found: Gradients) -> tuple[float, Float[Tensor, " d_in"]]:
        """Squared norm of the gradients in W_dec and W_enc, and W_enc^T code_bias_grads."""
        W_dec, W_enc = self._W_dec.detach().numpy(), self._W_enc.detach().numpy()
        bias_grads, sums = found.code_bias_grads.numpy(), self._empty_sums()
        squares = self._division.over_latents(
            lambda share: rows.squared_norm(share, found.rows, W_dec, W_enc, bias_grads, sums)
        )
        return squares, torch.from_numpy(sums.sum(0))

    def update(
        self, found: Gradients, dec: Moments, enc: Moments, *, clip: float, lr: float, step: int
    ) -> Float[Tensor, " d_in"]:
        """Adam's step number `step` (from 1) on all rows, with gradients multiplied by `clip`.

        Returns W_enc^T code_bias_grads, of the encoder before the step.
        """
        weights = rows.Weights(
            self._W_dec.detach().numpy(), dec.mean.numpy(), dec.square.numpy(),
            self._W_enc.detach().numpy(), enc.mean.numpy(), enc.square.numpy(),
        )  # fmt: skip
        bias_grads, sums = found.code_bias_grads.numpy(), self._empty_sums()
        searcher = self._searcher
        adam = AdamStep.at(step, lr=lr, clip=clip)
        self._division.over_latents(
            lambda share: rows.update(
                share, found.rows, weights, adam, bias_grads, sums, searcher.norms,
                searcher.enc_norms, searcher.rounding, searcher.shadow,
            )
        )  # fmt: skip
        return torch.from_numpy(sums.sum(0))

    def _empty_sums(self) -> NDArray[np.float32]:
        return np.empty((len(self._division.latent_bounds()) - 1, self.d_in), np.float32)


def _part(
    code: Codes, here: slice
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """The codes of a block of tokens, as the kernels' arguments."""
    return code.acts.numpy()[here], code.indices.numpy()[here], code.kept[here]
