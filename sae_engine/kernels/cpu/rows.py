"""Gradients of a training step on a CPU, and Adam, one row of weights at a time.

The dense gradient [d_sae, d_in] is never stored. The batch's (latent, token) pairs are sorted by
latent once; then the gradient rows of a group of latents are summed in cache, used and discarded.
One pass applies Adam and writes weights and moments once. Only if clipping may be needed or the
norm is reported, another pass before it computes the norm. Groups of latents instead of single ones
make Adam's memory accesses longer and more sequential. Latents are independent, so threads need no
atomics and results do not depend on timing. Called by `step`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae_engine.kernels.adam import AdamStep
from sae_engine.kernels.compiled import compiled
from sae_engine.kernels.cpu.codes import Pairs
from sae_engine.kernels.cpu.division import Share
from sae_engine.kernels.cpu.products import GROUP
from sae_engine.kernels.cpu.search import Rounding, Shadow, shadow_group
from sae_engine.kernels.cpu.vectors import Float32, dot, norm, weighted_sum


class PairGradients(NamedTuple):
    """Gradients that one reconstruction from sparse codes contributes, by (latent, token) pair.

    Its loss is a multiple of |residual|^2, residual = target - decoded.
    """

    pairs: Pairs
    residual: Float32
    """[n, d_in]"""
    dec_weights: Float32
    """[pairs]: a decoder row's gradient is the sum of the residuals with these weights."""
    pre_grads: Float32
    """[pairs]: gradients of the pre-activations."""


class RowGradients(NamedTuple):
    """The inputs of the weight rows' gradients."""

    code: PairGradients
    auxk: PairGradients
    """From the dead latents' reconstruction of the residual; without pairs if AuxK is off."""
    centered: Float32
    """[n, d_in]: x - b_dec."""
    project: bool
    """Whether the component of a decoder gradient along its row is removed."""
    tied: bool


class Weights(NamedTuple):
    """Weights [d_sae, d_in] and Adam's running means of their gradients and of the squares; if
    tied, the encoder's arrays are the decoder's.
    """

    dec: Float32
    dec_mean: Float32
    dec_square: Float32
    enc: Float32
    enc_mean: Float32
    enc_square: Float32


@compiled
def pair_gradients(
    share: Share,
    gradients: PairGradients,
    acts: Float32,
    projections: Float32,
    factor: float,
    act_grad: float,
    residual_norms: Float32,
    x_norms: Float32,
    bias_grads: Float32,
) -> None:
    """Fill in `dec_weights` and `pre_grads` of the share's latents from codes [n, k].

    `projections` are residual . W_dec,j. dL/d(decoded) = factor * residual, and `act_grad` is the
    derivative of the L1 term with respect to each activation. residual_norms and x_norms [n] are
    the norms of the rows of the residual and of the centered inputs. Writes bias_grads [d_sae], the
    sums of `pre_grads` over each latent's tokens. The share's sums are upper bounds of the squared
    norm of the latents' gradients in W_dec and W_enc, by the triangle inequality.
    """
    pairs = gradients.pairs
    scale, l1_grad = np.float32(factor), np.float32(act_grad)
    for part in range(share.first, share.sums.shape[0], share.step):
        squares = 0.0
        for j in range(share.bounds[part], share.bounds[part + 1]):
            bias, dec, enc = np.float32(0), np.float32(0), np.float32(0)
            for p in range(pairs.starts[j], pairs.starts[j + 1]):
                t, slot = pairs.tokens[p], pairs.slots[p]
                weight = scale * acts[t, slot]
                gradient = scale * projections[t, slot] + l1_grad
                gradients.dec_weights[p] = weight
                gradients.pre_grads[p] = gradient
                bias += gradient
                dec += abs(weight) * residual_norms[t]
                enc += abs(gradient) * x_norms[t]
            bias_grads[j] = bias
            squares += (dec + enc) * (dec + enc)
        share.sums[part] = squares


@compiled
def add_pairs(
    j: int, g: PairGradients, centered: Float32, is_first: bool, dec: Float32, enc: Float32
) -> None:
    """Add the pairs of latent j to its gradients; with `is_first`, overwrite the gradients."""
    first, last = g.pairs.starts[j], g.pairs.starts[j + 1]
    tokens, count = g.pairs.tokens[first:last], last - first
    weighted_sum(g.dec_weights[first:last], tokens, count, g.residual, is_first, dec)
    weighted_sum(g.pre_grads[first:last], tokens, count, centered, is_first, enc)


@compiled
def add_row(weight: float, row: Float32, total: Float32) -> None:
    if weight != 0:
        for c in range(total.shape[0]):
            total[c] += weight * row[c]


@compiled
def has_gradient(j: int, gradients: RowGradients) -> bool:
    code, auxk = gradients.code.pairs.starts, gradients.auxk.pairs.starts
    return code[j] < code[j + 1] or auxk[j] < auxk[j + 1]


@compiled
def row_gradients(
    j: int, gradients: RowGradients, W_dec: Float32, dec: Float32, enc: Float32
) -> None:
    """Write the gradients of latent j, which has pairs, in its decoder and encoder row; if tied,
    `dec` becomes their sum.
    """
    starts = gradients.code.pairs.starts
    has_code = starts[j] < starts[j + 1]
    if has_code:
        add_pairs(j, gradients.code, gradients.centered, True, dec, enc)
    add_pairs(j, gradients.auxk, gradients.centered, not has_code, dec, enc)
    if gradients.tied:
        for c in range(dec.shape[0]):
            dec[c] += enc[c]
    if gradients.project:
        row = W_dec[j]
        along = dot(dec, row) / max(dot(row, row), np.float32(1e-12))
        for c in range(dec.shape[0]):
            dec[c] -= along * row[c]


@compiled
def squared_norm(
    share: Share,
    gradients: RowGradients,
    W_dec: Float32,
    W_enc: Float32,
    bias_grads: Float32,
    sums: Float32,
) -> None:
    """Write the squared norms of the latents' gradients in W_dec and W_enc to the share's sums.

    Also writes the parts' rows of `sums`; see `update`.
    """
    d_in = W_dec.shape[1]
    dec, enc = np.empty(d_in, np.float32), np.empty(d_in, np.float32)
    for part in range(share.first, share.sums.shape[0], share.step):
        squares = 0.0
        sums[part] = 0
        for j in range(share.bounds[part], share.bounds[part + 1]):
            add_row(bias_grads[j], W_enc[j], sums[part])
            if has_gradient(j, gradients):
                row_gradients(j, gradients, W_dec, dec, enc)
                squares += dot(dec, dec)
                if not gradients.tied:
                    squares += dot(enc, enc)
        share.sums[part] = squares


@compiled
def adam(
    weight: Float32, gradient: Float32, mean: Float32, square: Float32, step: AdamStep
) -> None:
    """Adam on one row, in place."""
    b1, b2 = np.float32(step.beta1), np.float32(step.beta2)
    rest1 = np.float32((1 - step.beta1) * step.clip)
    rest2 = np.float32((1 - step.beta2) * step.clip * step.clip)
    size, root = np.float32(step.size), np.float32(step.root_correction)
    epsilon = np.float32(step.epsilon)
    for c in range(weight.shape[0]):
        m = b1 * mean[c] + rest1 * gradient[c]
        v = b2 * square[c] + rest2 * gradient[c] * gradient[c]
        mean[c] = m
        square[c] = v
        weight[c] -= size * m / (np.sqrt(v) * root + epsilon)


@compiled
def update_row(
    j: int, gradients: RowGradients, weights: Weights, dec: Float32, enc: Float32, step: AdamStep
) -> None:
    """Adam on the rows of latent j, whose gradients are `dec` and `enc`."""
    row = weights.dec[j]
    adam(row, dec, weights.dec_mean[j], weights.dec_square[j], step)
    if gradients.project:
        inverse = np.float32(1) / max(norm(row), np.float32(1e-12))
        for c in range(row.shape[0]):
            row[c] *= inverse
    if not gradients.tied:
        adam(weights.enc[j], enc, weights.enc_mean[j], weights.enc_square[j], step)


@compiled
def update(
    share: Share,
    gradients: RowGradients,
    weights: Weights,
    step: AdamStep,
    bias_grads: Float32,
    sums: Float32,
    norms: Float32,
    enc_norms: Float32,
    rounding: Rounding,
    shadow: Shadow,
) -> None:
    """Adam on the share's latents; with `project`, decoder rows are scaled to unit norm again.

    Updates the latents' norms and, unless it is empty, the shadow. Also writes each part's row of
    sums [parts, d_in], the sum of bias_grads[j] W_enc,j over its latents with W_enc as it was
    before, because here each encoder row is read anyway.
    """
    d_in = weights.dec.shape[1]
    dec, enc = np.zeros((GROUP, d_in), np.float32), np.zeros((GROUP, d_in), np.float32)
    is_zero = np.ones(GROUP, np.bool_)
    rounded = np.zeros((GROUP, 2 * shadow.panels.shape[1]), np.int16)
    for part in range(share.first, share.sums.shape[0], share.step):
        end = share.bounds[part + 1]
        sums[part] = 0
        for first in range(share.bounds[part], end, GROUP):
            last = min(first + GROUP, end)
            for j in range(first, last):
                c = j - first
                if has_gradient(j, gradients):
                    row_gradients(j, gradients, weights.dec, dec[c], enc[c])
                    is_zero[c] = False
                elif not is_zero[c]:
                    dec[c] = 0
                    enc[c] = 0
                    is_zero[c] = True
            for j in range(first, last):
                add_row(bias_grads[j], weights.enc[j], sums[part])
                update_row(j, gradients, weights, dec[j - first], enc[j - first], step)
                norms[j] = norm(weights.dec[j])
            shadow_group(first, last, weights.enc, enc_norms, rounding, shadow, rounded)
