"""Gradients of the rows of weights and Adam on a GPU, as Triton kernels.

As in `kernels.cpu.rows`, the dense gradient [d_sae, d_in] is never stored: the batch's (latent,
row) pairs are sorted by latent once, then each program sums a latent's gradient for a block of
columns in registers and uses it immediately. There are no atomics, so results do not depend on
timing, and the host reads nothing back. Used by `sae.triton_step`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_engine.kernels.adam import AdamStep
from sae_engine.kernels.gpu.codes import ROWS, column_block
from sae_engine.kernels.gpu.compiled import blocks, triton_kernel
from sae_engine.kernels.gpu.select import Codes

PAIRS = 64
"""Pairs of a latent whose scalars are loaded at once."""
VECTOR = 1024
"""Elements of a vector that a program updates."""


class Pairs(NamedTuple):
    """(latent, row) pairs in order of latent; those of inactive slots come last."""

    starts: Int[Tensor, " d_sae+1"]
    """int32: where each latent's pairs begin."""
    rows: Int[Tensor, " pairs"]
    """int32: rows of `RowGradients.out_grad`."""
    acts: Float[Tensor, " pairs"]
    pre_grads: Float[Tensor, " pairs"]
    """Gradients of the pre-activations."""


class RowGradients(NamedTuple):
    """The inputs of the weight rows' gradients."""

    pairs: Pairs
    out_grad: Float[Tensor, "m d_in"]
    """Gradients of the n tokens' reconstructions; with AuxK m = 2n, followed by those of AuxK's."""
    centered: Float[Tensor, "n d_in"]
    """x - b_dec"""
    tied: bool
    along: Float[Tensor, " d_sae"] | None = None
    """<gradient, row> / |row|^2 for each decoder row; the gradient's component along the row is
    removed. None keeps it.
    """


class Weights(NamedTuple):
    """One parameter [d_sae, d_in] and Adam's running means of its gradient and of the square."""

    weight: Tensor
    mean: Tensor
    square: Tensor


@triton_kernel
def _sum_pairs(
    starts, rows, acts, pre_grads, out_norms, x_norms, code_bias_grads, bias_grads, bounds, n,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """For one latent per program: the sums of its pre-activation gradients, without and with
    AuxK's, and an upper bound of the squared norm of its weights' gradients, by the triangle
    inequality.

    out_norms [m] and x_norms [n] are the norms of the rows of out_grad and of the centered inputs.
    """
    latent = tl.program_id(0)
    first, last = tl.load(starts + latent), tl.load(starts + latent + 1)
    code = tl.zeros([PAIRS], tl.float32)
    whole = tl.zeros([PAIRS], tl.float32)
    bound = tl.zeros([PAIRS], tl.float32)
    for begin in range(first, last, PAIRS):
        at = begin + tl.arange(0, PAIRS)
        inside = at < last
        row = tl.load(rows + at, inside, 0)
        grad = tl.load(pre_grads + at, inside, 0.0)
        act = tl.load(acts + at, inside, 0.0)
        code += tl.where(row < n, grad, 0.0)
        whole += grad
        bound += act * tl.load(out_norms + row, inside, 0.0)
        bound += tl.abs(grad) * tl.load(x_norms + row % n, inside, 0.0)
    limit = tl.sum(bound)
    tl.store(code_bias_grads + latent, tl.sum(code))
    tl.store(bias_grads + latent, tl.sum(whole))
    tl.store(bounds + latent, limit * limit)


@triton_kernel
def _row_gradients(
    latent, columns, inside, starts, rows, acts, pre_grads, out_grad, centered, n, d_in,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One latent's gradients in a block of columns of its decoder row and its encoder row."""
    first, last = tl.load(starts + latent), tl.load(starts + latent + 1)
    dec = tl.zeros([COLUMNS], tl.float32)
    enc = tl.zeros([COLUMNS], tl.float32)
    for begin in range(first, last, ROWS):
        at = begin + tl.arange(0, ROWS)
        row = tl.load(rows + at, at < last, 0).to(tl.int64)
        act = tl.load(acts + at, at < last, 0.0)
        grad = tl.load(pre_grads + at, at < last, 0.0)
        mask = (at < last)[:, None] & inside[None, :]
        out = tl.load(out_grad + row[:, None] * d_in + columns[None, :], mask, 0.0)
        x = tl.load(centered + (row % n)[:, None] * d_in + columns[None, :], mask, 0.0)
        dec += tl.sum(act[:, None] * out, 0)
        enc += tl.sum(grad[:, None] * x, 0)
    return dec, enc


@triton_kernel
def _reduce_rows(
    starts, rows, acts, pre_grads, out_grad, centered, n, d_in, W_dec, along, needed, sums,
    MEASURES_ALONG: tl.constexpr, PROJECT: tl.constexpr, TIED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """sums[latent, block] = the squared norm of one latent's gradients in a block of columns or,
    with MEASURES_ALONG, the dot product of its decoder gradient with its row of W_dec.

    Does nothing unless `needed`, a scalar on the device, is true.
    """
    if tl.load(needed):
        latent = tl.program_id(0).to(tl.int64)
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = columns < d_in
        dec, enc = _row_gradients(
            latent, columns, inside, starts, rows, acts, pre_grads, out_grad, centered, n, d_in,
            ROWS, COLUMNS,
        )  # fmt: skip
        if TIED:
            dec += enc
        if PROJECT:
            dec -= tl.load(along + latent) * tl.load(W_dec + latent * d_in + columns, inside, 0.0)
        if MEASURES_ALONG:
            terms = dec * tl.load(W_dec + latent * d_in + columns, inside, 0.0)
        elif TIED:
            terms = dec * dec
        else:
            terms = dec * dec + enc * enc
        tl.store(sums + latent * tl.num_programs(1) + tl.program_id(1), tl.sum(terms))


@triton_kernel
def _adam(
    gradient, weights, means, squares, at, inside, clip, size, root_correction,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """Adam as in `torch.optim.Adam`, in place, on the elements `at`; returns the new weights."""
    gradient *= clip
    mean = BETA1 * tl.load(means + at, inside, 0.0) + (1 - BETA1) * gradient
    square = BETA2 * tl.load(squares + at, inside, 0.0) + (1 - BETA2) * gradient * gradient
    root = tl.sqrt_rn(square) * root_correction + EPSILON
    weight = tl.load(weights + at, inside, 0.0) - size * tl.div_rn(mean, root)
    tl.store(means + at, mean, inside)
    tl.store(squares + at, square, inside)
    tl.store(weights + at, weight, inside)
    return weight


@triton_kernel
def _update(
    starts, rows, acts, pre_grads, out_grad, centered, n, d_in, along,
    W_dec, dec_mean, dec_square, W_enc, enc_mean, enc_square, shadow, clip, size, root_correction,
    PROJECT: tl.constexpr, TIED: tl.constexpr, HAS_SHADOW: tl.constexpr,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPSILON: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute one latent's gradients in a block of columns and apply Adam; latents without pairs
    have gradient 0. `shadow` receives the new encoder row in bfloat16.
    """
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d_in
    at = latent * d_in + columns
    factor = tl.load(clip)
    dec, enc = _row_gradients(
        latent, columns, inside, starts, rows, acts, pre_grads, out_grad, centered, n, d_in,
        ROWS, COLUMNS,
    )  # fmt: skip
    if TIED:
        dec += enc
    if PROJECT:
        dec -= tl.load(along + latent) * tl.load(W_dec + at, inside, 0.0)
    encoder = _adam(
        dec, W_dec, dec_mean, dec_square, at, inside, factor, size, root_correction,
        BETA1, BETA2, EPSILON,
    )  # fmt: skip
    if not TIED:
        encoder = _adam(
            enc, W_enc, enc_mean, enc_square, at, inside, factor, size, root_correction,
            BETA1, BETA2, EPSILON,
        )  # fmt: skip
    if HAS_SHADOW:
        tl.store(shadow + at, encoder.to(tl.bfloat16), inside)


@triton_kernel
def _update_vector(
    gradients, weights, means, squares, length, clip, size, root_correction,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPSILON: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Adam on a vector, given its gradient."""
    at = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < length
    _adam(
        tl.load(gradients + at, inside, 0.0), weights, means, squares, at, inside, tl.load(clip),
        size, root_correction, BETA1, BETA2, EPSILON,
    )  # fmt: skip


def sort_pairs(codes: list[tuple[Codes, Float[Tensor, "n _"]]], d_sae: int) -> Pairs:
    """The active pairs of several codes of the same n tokens, with their pre-activation gradients,
    sorted by latent, then code, then token. For token t, code number c refers to row c n + t.
    """
    n, device = len(codes[0][0].acts), codes[0][0].acts.device
    acts = torch.cat([code.acts.flatten() for code, _ in codes])
    grads = torch.cat([grads.flatten() for _, grads in codes])
    latents = torch.cat([code.indices.flatten() for code, _ in codes])
    rows = torch.arange(len(codes) * n, dtype=torch.int32, device=device).split(n)
    rows = torch.cat(
        [
            tokens[:, None].expand(-1, code.acts.shape[1]).flatten()
            for tokens, (code, _) in zip(rows, codes, strict=True)
        ]
    )
    keys, order = latents.masked_fill(acts == 0, d_sae).sort(stable=True)
    bounds = torch.arange(d_sae + 1, dtype=torch.int32, device=device)
    starts = torch.searchsorted(keys, bounds, out_int32=True)
    return Pairs(starts, rows[order], acts[order], grads[order])


class PairSums(NamedTuple):
    """Sums over each latent's pairs."""

    code_bias_grads: Float[Tensor, " d_sae"]
    """Sums of the pre-activation gradients, without AuxK's."""
    bias_grads: Float[Tensor, " d_sae"]
    """The same with AuxK's: the gradient of b_enc."""
    square_bounds: Float[Tensor, " d_sae"]
    """Upper bounds of the squared norms of the gradients in W_dec and W_enc."""


def sum_pairs(found: RowGradients) -> PairSums:
    d_sae = len(found.pairs.starts) - 1
    sums = PairSums(*torch.empty(3, d_sae, device=found.centered.device))
    _sum_pairs[(d_sae,)](
        *found.pairs, found.out_grad.norm(dim=1), found.centered.norm(dim=1), *sums,
        len(found.centered), PAIRS=PAIRS, num_warps=1,
    )  # fmt: skip
    return sums


def without_parallel(
    found: RowGradients, W_dec: Float[Tensor, "d_sae d_in"], norms: Float[Tensor, " d_sae"]
) -> RowGradients:
    """The same gradients, with the decoder's components along the rows of W_dec removed."""
    always = torch.ones((), dtype=torch.bool, device=W_dec.device)
    along = _reduce(found, W_dec, always, measures_along=True)
    return found._replace(along=along / norms.square().clamp_min_(1e-12))


def squared_norms(
    found: RowGradients, W_dec: Float[Tensor, "d_sae d_in"], needed: Bool[Tensor, ""]
) -> Float[Tensor, " d_sae"]:
    """Squared norms of each latent's gradients in W_dec and W_enc; 0 unless `needed`."""
    return _reduce(found, W_dec, needed, measures_along=False)


def _reduce(
    found: RowGradients, W_dec: Tensor, needed: Tensor, *, measures_along: bool
) -> Float[Tensor, " d_sae"]:
    d_sae, d_in = W_dec.shape
    columns = column_block(d_in)
    sums = torch.zeros(d_sae, blocks(d_in, columns), device=W_dec.device)
    _reduce_rows[sums.shape](
        *found.pairs, found.out_grad, found.centered, len(found.centered), d_in, W_dec,
        found.along, needed, sums, MEASURES_ALONG=measures_along,
        PROJECT=found.along is not None, TIED=found.tied, ROWS=ROWS, COLUMNS=columns,
    )  # fmt: skip
    return sums.sum(1)


def update(
    found: RowGradients,
    dec: Weights,
    enc: Weights,
    shadow: Float[Tensor, "d_sae d_in"] | None,
    adam: AdamStep,
) -> None:
    """Adam on all rows, in place; `shadow` becomes the new encoder in bfloat16. If tied, `enc` is
    `dec`.
    """
    d_sae, d_in = dec.weight.shape
    columns = column_block(d_in)
    _update[(d_sae, blocks(d_in, columns))](
        *found.pairs, found.out_grad, found.centered, len(found.centered), d_in, found.along,
        *dec, *enc, shadow, adam.clip, adam.size, adam.root_correction,
        PROJECT=found.along is not None, TIED=found.tied, HAS_SHADOW=shadow is not None,
        BETA1=adam.beta1, BETA2=adam.beta2, EPSILON=adam.epsilon, ROWS=ROWS, COLUMNS=columns,
    )  # fmt: skip


def update_vector(gradient: Float[Tensor, " d"], vector: Weights, adam: AdamStep) -> None:
    """Adam on a vector, in place."""
    length = len(gradient)
    _update_vector[(blocks(length, VECTOR),)](
        gradient, *vector, length, adam.clip, adam.size, adam.root_correction,
        BETA1=adam.beta1, BETA2=adam.beta2, EPSILON=adam.epsilon, COLUMNS=VECTOR,
    )  # fmt: skip
