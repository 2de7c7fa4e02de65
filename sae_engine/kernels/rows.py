"""What a training step does to rows of latents on a CPU: decode, gradients, Adam.

No gradient of the whole [d_sae, d_in] is ever held. The batch's (latent, token) pairs are sorted by
latent once; then a latent's gradient row is summed in cache, used and forgotten: in one pass that
applies Adam and writes weight and moments once, and, only when clipping may be needed or the norm
is asked for, in another one before it. The exact scores of the search's candidates are found in the
same order, so that a row of weights is read once per batch. Latents are independent, so threads
share them without atomics and the result does not depend on timing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_engine.kernels.compiled import compiled
from sae_engine.kernels.products import GROUP
from sae_engine.kernels.search import Rounding, Shadow, candidates, kth_largest, write_panel

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


class Share(NamedTuple):
    """One thread's share of all latents: of their parts, every `step`-th from `first` on.

    A call for each share and not for each part, because calls take the interpreter's lock.
    """

    bounds: Any
    """int64 [parts + 1]: where each part begins; whole groups of latents."""
    sums: Any
    """float64 [parts]: what a kernel sums over a part's latents, if it does."""
    first: int
    step: int


class Pairs(NamedTuple):
    """(latent, token) pairs in order of latent, then token."""

    starts: Int32
    """[d_sae + 1]: where each latent's pairs begin."""
    tokens: Int32
    """[pairs]"""
    slots: Int32
    """[pairs]: the place of each within its token's row of latents."""


class PairGradients(NamedTuple):
    """What a reconstruction from sparse codes gives the rows, by pairs."""

    pairs: Pairs
    acts: Float32
    """[pairs]"""
    pre_grads: Float32
    """[pairs]: gradients of the pre-activations."""
    out_grad: Float32
    """[n, d_in]: gradient of the reconstruction."""


class RowGradients(NamedTuple):
    """All that the gradients of the rows are summed from."""

    code: PairGradients
    auxk: PairGradients
    """Of the dead latents' own reconstruction; without pairs if there is none."""
    centered: Float32
    """[n, d_in]: x - b_dec."""
    project: bool
    """Whether the part of a decoder gradient along its row is removed."""
    tied: bool


class Weights(NamedTuple):
    """Rows [d_sae, d_in] and Adam's running means of their gradients and of the squares; when tied,
    those of the encoder are the decoder's own.
    """

    dec: Float32
    dec_mean: Float32
    dec_square: Float32
    enc: Float32
    enc_mean: Float32
    enc_square: Float32


class AdamStep(NamedTuple):
    """One step of Adam."""

    clip: float
    """What gradients are multiplied by."""
    size: float
    """lr / (1 - beta1^t)"""
    root_correction: float
    """1 / sqrt(1 - beta2^t)"""
    beta1: float
    beta2: float
    epsilon: float


@compiled
def dot(a: Float32, b: Float32) -> np.float32:
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@compiled
def norm(row: Float32) -> np.float32:
    return np.sqrt(dot(row, row))


@compiled
def row_norms(rows: Float32, norms: Float32) -> None:
    for j in range(rows.shape[0]):
        norms[j] = norm(rows[j])


@compiled
def find_candidates(
    scores: Float32,
    group_bounds: Float32,
    errors: Float32,
    group_errors: Float32,
    x_errors: Float32,
    k: int,
    found: Int32,
    counts: Int32,
) -> None:
    """The candidates of a block of n tokens: the first `counts[r]` of `found[r]`.

    Arguments are those of `search.candidates`, for n tokens; found is [n, d_sae].
    """
    scratch = np.empty(scores.shape[1], np.float32)
    open_groups = np.empty(group_errors.shape[0], np.int32)
    for r in range(counts.shape[0]):
        counts[r] = candidates(
            scores[r], group_bounds[r], errors, group_errors, x_errors[r], k, scratch, open_groups,
            found[r],
        )  # fmt: skip


@compiled
def sort_by_latent(latents: Int32, counts: Int32, pairs: Pairs) -> None:
    """Fill `pairs` with the first counts[r] of latents[r], for every token r."""
    starts = pairs.starts
    starts[:] = 0
    for r in range(counts.shape[0]):
        for i in range(counts[r]):
            starts[latents[r, i] + 1] += 1
    for j in range(1, starts.shape[0]):
        starts[j] += starts[j - 1]
    for r in range(counts.shape[0]):
        for i in range(counts[r]):
            j = latents[r, i]
            pairs.tokens[starts[j]] = r
            pairs.slots[starts[j]] = i
            starts[j] += 1
    for j in range(starts.shape[0] - 1, 0, -1):
        starts[j] = starts[j - 1]
    starts[0] = 0


@compiled
def exact_scores(
    share: Share,
    pairs: Pairs,
    centered: Float32,
    W_enc: Float32,
    b_enc: Float32,
    norms: Float32,
    scores: Float32,
) -> None:
    """scores[token, slot] = pre_j |W_dec,j| for the pairs of the share's latents."""
    for part in range(share.first, share.sums.shape[0], share.step):
        for j in range(share.bounds[part], share.bounds[part + 1]):
            for p in range(pairs.starts[j], pairs.starts[j + 1]):
                t = pairs.tokens[p]
                scores[t, pairs.slots[p]] = (dot(centered[t], W_enc[j]) + b_enc[j]) * norms[j]


@compiled
def keep_best(
    found: Int32,
    counts: Int32,
    scores: Float32,
    norms: Float32,
    k: int,
    acts: Float32,
    latents: Int32,
    kept: Int32,
) -> None:
    """The codes of n tokens: of their candidates the k with the largest positive scores.

    Writes the activations and their latents [n, k] and how many there are, kept [n]; the rest of a
    row is filled with zeros.
    """
    scratch = np.empty(max(1, counts.max()), np.float32)
    for r in range(counts.shape[0]):
        positive = 0
        for i in range(counts[r]):
            if scores[r, i] > 0:
                scratch[positive] = scores[r, i]
                positive += 1
        is_choice = positive > k
        threshold = kth_largest(scratch, positive, k) if is_choice else np.float32(0)
        n = 0
        for i in range(counts[r]):
            if scores[r, i] > threshold:
                acts[r, n] = scores[r, i] / norms[found[r, i]]
                latents[r, n] = found[r, i]
                n += 1
        if is_choice:  # those equal to the k-th fill what is left
            for i in range(counts[r]):
                if scores[r, i] == threshold and n < k:
                    acts[r, n] = threshold / norms[found[r, i]]
                    latents[r, n] = found[r, i]
                    n += 1
        kept[r] = n
        acts[r, n:] = 0
        latents[r, n:] = 0


@compiled
def decode(acts: Float32, latents: Int32, kept: Int32, W_dec: Float32, decoded: Float32) -> None:
    """decoded [n, d_in] = the sums of the codes' decoder rows, without the bias."""
    for r in range(kept.shape[0]):
        row = decoded[r]
        row[:] = 0
        for i in range(kept[r]):
            act, feature = acts[r, i], W_dec[latents[r, i]]
            for c in range(row.shape[0]):
                row[c] += act * feature[c]


@compiled
def pre_activation_gradients(
    share: Share,
    gradients: PairGradients,
    codes: Float32,
    W_dec: Float32,
    act_grad: float,
    out_norms: Float32,
    x_norms: Float32,
    bias_grads: Float32,
) -> None:
    """Gradients of the pre-activations of the share's latents.

    codes [n, k] are the activations, `act_grad` what every activation adds to L's derivative (the
    L1 term); `out_norms` and `x_norms` [n] are the norms of out_grad's and the centered inputs'
    rows. Writes `acts`, `pre_grads` and their sums over each latent's tokens, `bias_grads` [d_sae].
    The share's sums are upper bounds of the squared norm of the latents' gradients in W_dec and
    W_enc, by the triangle inequality.
    """
    pairs = gradients.pairs
    for part in range(share.first, share.sums.shape[0], share.step):
        squares = 0.0
        for j in range(share.bounds[part], share.bounds[part + 1]):
            bias, dec, enc = np.float32(0), np.float32(0), np.float32(0)
            for p in range(pairs.starts[j], pairs.starts[j + 1]):
                t = pairs.tokens[p]
                act = codes[t, pairs.slots[p]]
                gradient = dot(gradients.out_grad[t], W_dec[j]) + np.float32(act_grad)
                gradients.acts[p] = act
                gradients.pre_grads[p] = gradient
                bias += gradient
                dec += act * out_norms[t]
                enc += abs(gradient) * x_norms[t]
            bias_grads[j] = bias
            squares += (dec + enc) * (dec + enc)
        share.sums[part] = squares


@compiled
def add_rows(
    first: int, last: int, tokens: Int32, weights: Float32, rows: Float32, total: Float32
) -> None:
    """total += sum of weights[p] rows[tokens[p]] over the pairs `first` to `last`."""
    for p in range(first, last):
        row, weight = rows[tokens[p]], weights[p]
        for c in range(total.shape[0]):
            total[c] += weight * row[c]


@compiled
def add_pairs(
    j: int, gradients: PairGradients, centered: Float32, dec: Float32, enc: Float32
) -> None:
    g = gradients
    first, last = g.pairs.starts[j], g.pairs.starts[j + 1]
    add_rows(first, last, g.pairs.tokens, g.acts, g.out_grad, dec)
    add_rows(first, last, g.pairs.tokens, g.pre_grads, centered, enc)


@compiled
def has_gradient(j: int, gradients: RowGradients) -> bool:
    code, auxk = gradients.code.pairs.starts, gradients.auxk.pairs.starts
    return code[j] < code[j + 1] or auxk[j] < auxk[j + 1]


@compiled
def row_gradients(
    j: int, gradients: RowGradients, W_dec: Float32, dec: Float32, enc: Float32
) -> None:
    """One latent's gradient in its decoder row and its encoder row (both in `dec` when tied)."""
    dec[:] = 0
    enc[:] = 0
    add_pairs(j, gradients.code, gradients.centered, dec, enc)
    add_pairs(j, gradients.auxk, gradients.centered, dec, enc)
    if gradients.tied:
        for c in range(dec.shape[0]):
            dec[c] += enc[c]
    if gradients.project:
        row = W_dec[j]
        along = dot(dec, row) / max(dot(row, row), np.float32(1e-12))
        for c in range(dec.shape[0]):
            dec[c] -= along * row[c]


@compiled
def squared_norm(share: Share, gradients: RowGradients, W_dec: Float32) -> None:
    """The share's sums are the squared norms of its latents' gradients in W_dec and W_enc."""
    d_in = W_dec.shape[1]
    dec, enc = np.empty(d_in, np.float32), np.empty(d_in, np.float32)
    for part in range(share.first, share.sums.shape[0], share.step):
        squares = 0.0
        for j in range(share.bounds[part], share.bounds[part + 1]):
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
    """Adam on one row."""
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
def write_shadow(share: Share, W_enc: Float32, rounding: Rounding, shadow: Shadow) -> None:
    """Write the share's latents' part of the shadow."""
    for part in range(share.first, share.sums.shape[0], share.step):
        first, last = share.bounds[part], share.bounds[part + 1]
        for p in range(first // GROUP, (last + GROUP - 1) // GROUP):
            write_panel(W_enc, p, rounding, shadow)


@compiled
def update_row(
    j: int, gradients: RowGradients, weights: Weights, dec: Float32, enc: Float32, step: AdamStep
) -> None:
    """Adam on one latent, whose gradients are `dec` and `enc`."""
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
    norms: Float32,
    rounding: Rounding,
    shadow: Shadow,
) -> None:
    """Adam on the share's latents; decoder rows get unit norm again with `project`.

    Rewrites the latents' decoder norms and, unless it is empty, their shadow.
    """
    d_in = weights.dec.shape[1]
    dec, enc = np.zeros(d_in, np.float32), np.zeros(d_in, np.float32)
    is_zero = True
    for part in range(share.first, share.sums.shape[0], share.step):
        last = share.bounds[part + 1]
        for j in range(share.bounds[part], last):
            if has_gradient(j, gradients):
                row_gradients(j, gradients, weights.dec, dec, enc)
                is_zero = False
            elif not is_zero:
                dec[:] = 0
                enc[:] = 0
                is_zero = True
            update_row(j, gradients, weights, dec, enc, step)
            norms[j] = norm(weights.dec[j])
            if shadow.panels.shape[0] and (j + 1 == last or j % GROUP == GROUP - 1):
                write_panel(weights.enc, j // GROUP, rounding, shadow)
