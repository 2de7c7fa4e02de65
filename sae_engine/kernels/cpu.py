"""A TopK SAE's training step on a CPU, with compiled kernels on the tensors' own memory.

Read `search` for how the code is found and `rows` for how gradients and Adam are done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sae_engine.kernels import rows, search
from sae_engine.kernels.compiled import in_parallel, num_threads

BLOCK_TOKENS, BLOCK_BYTES = 128, 2**18
"""Tokens that are searched together, at most: rounded they fill half of a second-level cache, and
their scores are still in a cache when candidates are chosen.
"""
PARTS = 32
"""Parts in which latents are handed to threads; their number decides the order of sums."""
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
    """Adam's running means of a parameter's gradient and of its square."""

    mean: Tensor
    square: Tensor


class ExtraGradients(NamedTuple):
    """Gradients of some latents' rows that do not come from the TopK code (AuxK)."""

    latents: Int[Tensor, " D"]
    W_dec: Float[Tensor, "D d_in"]
    W_enc: Float[Tensor, "D d_in"]
    b_enc: Float[Tensor, " D"]


class Codes(NamedTuple):
    """Codes of n tokens and their reconstruction without the bias."""

    acts: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]
    """int32"""
    kept: NDArray[np.int32]
    """[n]: how many of a row are active, the first ones; the others are 0."""
    decoded: Float[Tensor, "n d_in"]


class Gradients(NamedTuple):
    """What `CpuKernels.gradients` found."""

    rows: rows.RowGradients
    bias_grads: Float[Tensor, " d_sae"]
    """Sum of each latent's pre-activation gradients; AuxK's not among them."""
    norm_bound: float
    """At least the norm of the gradients in W_dec and W_enc."""


class CpuKernels:
    """Encodes, decodes and updates rows of latents in place; all tensors float32, contiguous.

    `W_enc` may be `W_dec` itself (tied). The shadow for the search is made when the encoder has
    been changed from outside, and kept up to date by `update`.
    """

    def __init__(
        self, W_dec: Float[Tensor, "d_sae d_in"], W_enc: Float[Tensor, "d_sae d_in"], k: int
    ) -> None:
        self._W_dec, self._W_enc, self._k = W_dec, W_enc, k
        self._tied = W_enc.data_ptr() == W_dec.data_ptr()
        self.d_sae, self.d_in = W_dec.shape
        groups = -(-self.d_sae // search.GROUP)
        self._padded = groups * search.GROUP
        pairs = -(-self.d_in // 2) if search.HAS_AVX2 else 0
        self._panels = np.zeros((groups if pairs else 0, pairs, search.GROUP), np.int32)
        self._scales = np.zeros(self._padded, np.float32)
        self._norms = np.zeros(self.d_sae, np.float32)
        self._norm_limit = search.largest_norm(self.d_in)
        self._seen = (-1, -1)
        self._block_scratch: dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        # Mostly never touched: as many candidates as there are latents are rare.
        self._found = np.empty((0, self.d_sae), np.int32)
        self._exact = np.empty((0, self.d_sae), np.float32)

    def forward(self, centered: Float[Tensor, "n d_in"], b_enc: Float[Tensor, " d_sae"]) -> Codes:
        """Codes of x - b_dec.

        The latents are those that `reference.select_topk` chooses, up to float32 rounding; the
        activations are computed in float32.
        """
        self._refresh()
        n = len(centered)
        if len(self._found) < n:
            self._found = np.empty((n, self.d_sae), np.int32)
            self._exact = np.empty((n, self.d_sae), np.float32)
        found, exact, counts = self._found[:n], self._exact[:n], np.empty(n, np.int32)
        bounds = self._find(centered, b_enc, found, counts)
        pairs = self._pairs(found, counts)
        x, bias = centered.numpy(), b_enc.detach().numpy()

        def score(first: int, last: int) -> float:
            rows.exact_scores(
                first, last, pairs, x, self._W_enc.detach().numpy(), bias, self._norms, exact
            )
            return 0.0

        self._sum_over_latents(score)
        acts, decoded = torch.empty(n, self._k), torch.empty_like(centered)
        indices, kept = torch.empty(n, self._k, dtype=torch.int32), np.empty(n, np.int32)

        def keep(part: int, _thread: int) -> None:
            block = slice(bounds[part], bounds[part + 1])
            code = acts.numpy()[block], indices.numpy()[block], kept[block]
            rows.keep_best(found[block], counts[block], exact[block], self._norms, self._k, *code)
            rows.decode(*code, self._W_dec.detach().numpy(), decoded.numpy()[block])

        in_parallel(keep, len(bounds) - 1)
        return Codes(acts, indices, kept, decoded)

    def _find(
        self,
        centered: Tensor,
        b_enc: Tensor,
        found: NDArray[np.int32],
        counts: NDArray[np.int32],
    ) -> list[int]:
        """Each token's candidates; returns where blocks of tokens begin."""
        gains = self._pad(self._norms) * self._scales
        offsets = self._pad(self._norms * b_enc.detach().numpy())
        offsets[self.d_sae :] = -np.inf
        errors = gains * np.float32(self._norm_limit * search.error_factor(self.d_in))
        if not search.HAS_AVX2:
            errors[:] = 0
        group_errors = errors.reshape(-1, search.GROUP).max(axis=1)
        bounds = self._blocks(len(centered))

        def block(part: int, thread: int) -> None:
            here = slice(bounds[part], bounds[part + 1])
            scores, group_bounds, x_errors = self._scores(
                centered[here], b_enc, gains, offsets, errors, thread
            )
            rows.find_candidates(
                scores, group_bounds, errors, group_errors, x_errors, self._k, found[here],
                counts[here],
            )  # fmt: skip

        in_parallel(block, len(bounds) - 1)
        return bounds

    def _pairs(self, latents: NDArray[np.int32], counts: NDArray[np.int32]) -> rows.Pairs:
        total = int(counts.sum())
        pairs = rows.Pairs(
            np.empty(self.d_sae + 1, np.int32), np.empty(total, np.int32), np.empty(total, np.int32)
        )
        rows.sort_by_latent(latents, counts, pairs)
        return pairs

    def _scores(
        self,
        x: Tensor,
        b_enc: Tensor,
        gains: NDArray[np.float32],
        offsets: NDArray[np.float32],
        errors: NDArray[np.float32],
        thread: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Scores of a block of tokens, their groups' bounds, and the tokens' part of the errors."""
        n = len(x)
        padded = -(-n // search.TILE_ROWS) * search.TILE_ROWS
        buffers = self._block_scratch.get(thread)
        if buffers is None or len(buffers[0]) < padded:
            buffers = self._block_scratch[thread] = (
                np.empty((padded, self._padded), np.float32),
                np.empty((padded, self._padded // search.GROUP), np.float32),
            )
        scores, group_bounds = buffers[0][:padded], buffers[1][:padded]
        if not search.HAS_AVX2:
            raw = torch.addmm(b_enc.detach(), x, self._W_enc.detach().T).numpy()
            scores[:n, : self.d_sae] = raw * self._norms
            scores[:, self.d_sae :] = -np.inf
            search.float_group_bounds(scores[:n], group_bounds[:n])
            return scores, group_bounds, np.zeros(n, np.float32)
        rounded = np.zeros((padded, 2 * self._panels.shape[1]), np.int16)
        x_scales = np.zeros(padded, np.float32)
        search.round_rows(x.numpy(), self._norm_limit, rounded, x_scales)
        x_errors = x_scales * np.float32(self._norm_limit)
        search.integer_scores(
            rounded, x_scales, self._panels, gains, offsets, errors, x_errors, scores, group_bounds
        )
        return scores, group_bounds, x_errors

    def gradients(
        self,
        centered: Float[Tensor, "n d_in"],
        codes: Codes,
        x_hat_grad: Float[Tensor, "n d_in"],
        act_grad: float,
        extra: ExtraGradients | None,
        *,
        normalize: bool,
    ) -> Gradients:
        """All that `update` needs.

        `x_hat_grad` is dL/dx_hat, `act_grad` what each activation adds to L's derivative besides.
        With `normalize`, decoder gradients lose their part along the row.
        """
        pairs = self._pairs(codes.indices.numpy(), codes.kept)
        extra_of = np.full(self.d_sae, -1, np.int32)
        extra_dec = extra_enc = np.empty((0, self.d_in), np.float32)
        extra_norm = 0.0
        if extra is not None:
            extra_of[extra.latents.numpy()] = np.arange(len(extra.latents))
            extra_dec, extra_enc = extra.W_dec.numpy(), extra.W_enc.numpy()
            extra_norm = float(extra.W_dec.norm() + extra.W_enc.norm())
        gradients = rows.RowGradients(
            pairs,
            np.empty(len(pairs.tokens), np.float32),
            np.empty(len(pairs.tokens), np.float32),
            centered.numpy(),
            x_hat_grad.numpy(),
            extra_of,
            extra_dec,
            extra_enc,
            normalize,
            self._tied,
        )
        bias_grads = torch.empty(self.d_sae)
        x_norms = np.empty(len(centered), np.float32)
        grad_norms = np.empty(len(centered), np.float32)
        rows.row_norms(gradients.centered, x_norms)
        rows.row_norms(gradients.x_hat_grad, grad_norms)

        def part(first: int, last: int) -> float:
            return rows.pre_activation_gradients(
                first, last, gradients, codes.acts.numpy(), self._W_dec.detach().numpy(), act_grad,
                grad_norms, x_norms, bias_grads.numpy(),
            )  # fmt: skip

        bound = self._sum_over_latents(part) ** 0.5 + extra_norm
        return Gradients(gradients, bias_grads, bound)

    def squared_norm(self, found: Gradients) -> float:
        """Squared norm of the gradients in W_dec and W_enc."""
        W_dec = self._W_dec.detach().numpy()
        return self._sum_over_latents(
            lambda first, last: rows.squared_norm(first, last, found.rows, W_dec)
        )

    def update(
        self, found: Gradients, dec: Moments, enc: Moments, *, clip: float, lr: float, step: int
    ) -> None:
        """Adam's step number `step` (from 1) on all rows, gradients multiplied by `clip`."""
        weights = rows.Weights(
            self._W_dec.detach().numpy(), dec.mean.numpy(), dec.square.numpy(),
            self._W_enc.detach().numpy(), enc.mean.numpy(), enc.square.numpy(),
        )  # fmt: skip
        adam = rows.AdamStep(
            clip, lr / (1 - BETA1**step), (1 - BETA2**step) ** -0.5, BETA1, BETA2, EPSILON
        )

        def part(first: int, last: int) -> float:
            rows.update(
                first, last, found.rows, weights, adam, self._norms, self._norm_limit,
                self._panels, self._scales,
            )  # fmt: skip
            return 0.0

        self._sum_over_latents(part)

    def _refresh(self) -> None:
        """Make norms and shadow again if the weights were changed by anything but `update`."""
        now = (self._W_dec._version, self._W_enc._version)
        if now == self._seen:
            return
        self._seen = now
        rows.row_norms(self._W_dec.detach().numpy(), self._norms)
        if not len(self._panels):
            self._scales[:] = 1
            return

        def part(first: int, last: int) -> float:
            search.write_panels(
                self._W_enc.detach().numpy(), first, last, self._norm_limit, self._panels,
                self._scales,
            )  # fmt: skip
            return 0.0

        self._sum_over_latents(part)

    def _blocks(self, n: int) -> list[int]:
        """Where blocks of tokens begin: a multiple of the threads, of nearly equal size."""
        threads = num_threads()
        most = min(BLOCK_TOKENS, BLOCK_BYTES // (2 * self.d_in))
        rounds = max(1, round(n / threads / max(1, most)))
        size = -(-n // (threads * rounds))
        size = -(-size // search.TILE_ROWS) * search.TILE_ROWS
        return [*range(0, n, size), n]

    def _sum_over_latents(self, work: Callable[[int, int], float]) -> float:
        """Call `work(first, last)` for all latents, in parts of whole groups; the sum of what it
        returns.
        """
        size = -(-self._padded // search.GROUP // PARTS) * search.GROUP
        bounds = [*range(0, self.d_sae, size), self.d_sae]
        found = np.zeros(len(bounds) - 1)

        def part(number: int, _thread: int) -> None:
            found[number] = work(bounds[number], bounds[number + 1])

        in_parallel(part, len(bounds) - 1)
        return float(found.sum())

    def _pad(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.pad(values, (0, self._padded - self.d_sae))
