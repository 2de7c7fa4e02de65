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

from sae_engine import memory
from sae_engine.adam import BETA1, BETA2, EPSILON, Moments
from sae_engine.kernels import rows, search
from sae_engine.kernels.compiled import in_parallel, num_threads
from sae_engine.kernels.products import GROUP
from sae_engine.kernels.search import SEARCHES, Latents, Rounding, Search, Shadow

BLOCK_TOKENS, BLOCK_BYTES = 128, 2**18
"""Tokens that are searched together, at most: rounded they fill half of a second-level cache."""
PARTS = 32
"""Parts in which latents are handed to threads; their number decides the order of sums."""


class Codes(NamedTuple):
    """Codes of n tokens and their reconstruction without the bias."""

    acts: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]
    """int32"""
    kept: NDArray[np.int32]
    """[n]: how many of a row are active, the first ones; the others are 0."""
    decoded: Float[Tensor, "n d_in"]


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
        self._norms = np.zeros(self.d_sae, np.float32)
        self._seen = (-1, -1)
        self._scratch: dict[int, Scratch] = {}
        self._found, self._exact = self._room_for_candidates(0)

    def forward(
        self,
        centered: Float[Tensor, "n d_in"],
        b_enc: Float[Tensor, " d_sae"],
        *,
        decodes: bool = True,
    ) -> Codes:
        """Codes of x - b_dec; what they decode to is 0 unless it is asked for.

        The latents are those that `reference.select_topk` chooses, up to float32 rounding; the
        activations are computed in float32.
        """
        self._refresh()
        n = len(centered)
        if len(self._found) < n:
            self._found, self._exact = self._room_for_candidates(n)
        found, exact, counts = self._found[:n], self._exact[:n], np.empty(n, np.int32)
        bounds = self._find(centered, b_enc, found, counts)
        pairs = self._pairs(found, counts)
        x, bias = centered.numpy(), b_enc.detach().numpy()

        W_enc = self._W_enc.detach().numpy()
        self._over_latents(
            lambda share: rows.exact_scores(share, pairs, x, W_enc, bias, self._norms, exact)
        )
        return self._keep_and_decode(found, counts, exact, self._k, bounds, decodes=decodes)

    def forward_auxk(
        self,
        centered: Float[Tensor, "n d_in"],
        b_enc: Float[Tensor, " d_sae"],
        dead: Int[Tensor, " D"],
        k_aux: int,
    ) -> Codes:
        """Codes of the `k_aux` strongest among the dead latents that are positive.

        Few of them are, so that after one matmul of their rows all goes by pairs.
        """
        pre = torch.addmm(b_enc[dead], centered, self._W_enc[dead].T)
        scores = pre.mul_(torch.from_numpy(self._norms)[dead]).numpy()
        found = np.tile(dead.numpy().astype(np.int32), (len(centered), 1))
        counts = np.full(len(centered), len(dead), np.int32)
        bounds = self._blocks(len(centered))
        return self._keep_and_decode(found, counts, scores, k_aux, bounds)

    def _keep_and_decode(
        self,
        found: NDArray[np.int32],
        counts: NDArray[np.int32],
        scores: NDArray[np.float32],
        k: int,
        bounds: list[int],
        *,
        decodes: bool = True,
    ) -> Codes:
        """The k best of each token's candidates and what they give, by blocks of tokens."""
        n = len(counts)
        acts, decoded = torch.empty(n, k), torch.empty(n, self.d_in)
        indices, kept = torch.empty(n, k, dtype=torch.int32), np.empty(n, np.int32)

        def block(part: int, _thread: int) -> None:
            here = slice(bounds[part], bounds[part + 1])
            code = acts.numpy()[here], indices.numpy()[here], kept[here]
            rows.keep_best(found[here], counts[here], scores[here], self._norms, k, *code)
            if decodes:
                rows.decode(*code, self._W_dec.detach().numpy(), decoded.numpy()[here])
            else:
                decoded[here] = 0

        in_parallel(block, len(bounds) - 1)
        return Codes(acts, indices, kept, decoded)

    def _find(
        self,
        centered: Tensor,
        b_enc: Tensor,
        found: NDArray[np.int32],
        counts: NDArray[np.int32],
    ) -> list[int]:
        """Each token's candidates; returns where blocks of tokens begin."""
        norms = self._pad(self._norms)
        offsets = norms * self._pad(b_enc.detach().numpy())
        offsets[self.d_sae :] = -np.inf
        latents = Latents(norms * self._shadow.scales, offsets, norms * self._shadow.errors)
        group_errors = latents.errors.reshape(-1, GROUP).max(axis=1)
        bounds = self._blocks(len(centered))

        def block(part: int, thread: int) -> None:
            here = slice(bounds[part], bounds[part + 1])
            scores, group_bounds, errors = self._scores(centered[here], b_enc, latents, thread)
            rows.find_candidates(
                scores, group_bounds, latents.errors, group_errors, errors, self._k, found[here],
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
        code: tuple[Codes, Float[Tensor, "n d_in"]],
        auxk: tuple[Codes, Float[Tensor, "n d_in"]] | None,
        act_grad: float,
        *,
        normalize: bool,
    ) -> Gradients:
        """All that `update` needs, from codes and the gradients of what they decode to.

        `act_grad` is what each activation of the code adds to L's derivative besides. With
        `normalize`, decoder gradients lose their part along the row.
        """
        x = centered.numpy()
        x_norms = np.empty(len(x), np.float32)
        rows.row_norms(x, x_norms)
        of_code, code_bias, bound = self._by_pairs(*code, act_grad, x_norms)
        if auxk is None:
            nothing = rows.Pairs(np.zeros(self.d_sae + 1, np.int32), *[np.empty(0, np.int32)] * 2)
            of_auxk = of_code._replace(pairs=nothing)
            auxk_bias = torch.zeros(self.d_sae)
        else:
            of_auxk, auxk_bias, more = self._by_pairs(*auxk, 0.0, x_norms)
            bound += more
        gradients = rows.RowGradients(of_code, of_auxk, x, normalize, self._tied)
        return Gradients(gradients, code_bias, auxk_bias, bound)

    def _by_pairs(
        self, codes: Codes, out_grad: Tensor, act_grad: float, x_norms: NDArray[np.float32]
    ) -> tuple[rows.PairGradients, Tensor, float]:
        """A reconstruction's gradients, those of the biases, and a bound of the rows' norm."""
        pairs = self._pairs(codes.indices.numpy(), codes.kept)
        acts, pre_grads = (np.empty(len(pairs.tokens), np.float32) for _ in range(2))
        gradients = rows.PairGradients(pairs, acts, pre_grads, out_grad.numpy())
        out_norms = np.empty(len(x_norms), np.float32)
        rows.row_norms(gradients.out_grad, out_norms)
        bias_grads = torch.empty(self.d_sae)

        squares = self._over_latents(
            lambda share: rows.pre_activation_gradients(
                share, gradients, codes.acts.numpy(), self._W_dec.detach().numpy(), act_grad,
                out_norms, x_norms, bias_grads.numpy(),
            )
        )  # fmt: skip
        return gradients, bias_grads, squares**0.5

    def squared_norm(self, found: Gradients) -> float:
        """Squared norm of the gradients in W_dec and W_enc."""
        W_dec = self._W_dec.detach().numpy()
        return self._over_latents(lambda share: rows.squared_norm(share, found.rows, W_dec))

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

        self._over_latents(
            lambda share: rows.update(
                share, found.rows, weights, adam, self._norms, self._rounding, self._shadow
            )
        )

    def _refresh(self) -> None:
        """Make norms and shadow again if the weights were changed by anything but `update`."""
        now = (self._W_dec._version, self._W_enc._version)
        if now == self._seen:
            return
        self._seen = now
        rows.row_norms(self._W_dec.detach().numpy(), self._norms)
        if self._search is not Search.FLOATS:
            W_enc = self._W_enc.detach().numpy()
            self._over_latents(
                lambda share: rows.write_shadow(share, W_enc, self._rounding, self._shadow)
            )

    def _room_for_candidates(self, n: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Latents and exact scores of as many candidates as there are latents. So many are rare:
        only the beginnings of rows are touched, in small pages, as PyTorch's memory is.
        """
        shape = (n, self.d_sae)
        return torch.empty(shape, dtype=torch.int32).numpy(), torch.empty(shape).numpy()

    def _blocks(self, n: int) -> list[int]:
        """Where blocks of tokens begin: a multiple of the threads, of nearly equal size."""
        threads = num_threads()
        most = min(BLOCK_TOKENS, BLOCK_BYTES // (2 * self.d_in))
        rounds = max(1, round(n / threads / max(1, most)))
        size = -(-n // (threads * rounds))
        multiple = self._search.token_multiple
        size = -(-size // multiple) * multiple
        return [*range(0, n, size), n]

    def _over_latents(self, work: Callable[[rows.Share], None]) -> float:
        """Share all latents between the threads; the sum of the parts' sums."""
        size = -(-self._padded // GROUP // PARTS) * GROUP
        bounds = np.array([*range(0, self.d_sae, size), self.d_sae])
        sums = np.zeros(len(bounds) - 1)
        threads = min(num_threads(), len(sums))
        in_parallel(lambda first, _: work(rows.Share(bounds, sums, first, threads)), threads)
        return float(sums.sum())

    def _pad(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.pad(values, (0, self._padded - self.d_sae))
