"""What a training step does to rows of latents on a CPU: decode, gradients, Adam.

No gradient of the whole [d_sae, d_in] is ever held. The batch's (latent, token) pairs are sorted by
latent once; then a latent's gradient row is summed in cache, used and forgotten: in one pass that
applies Adam and writes weight and moments once, and, only when clipping may be needed or the norm
is asked for, in another one before it. Latents are
independent, so threads share them without atomics and the result does not depend on timing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_engine.kernels.compiled import compiled
from sae_engine.kernels.search import GROUP, candidates, kth_largest, write_panel

Float32 = NDArray[np.float32]


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
def select_and_decode(
    centered: Float32,
    scores: Float32,
    group_bounds: Float32,
    errors: Float32,
    group_errors: Float32,
    x_errors: Float32,
    W_enc: Float32,
    b_enc: Float32,
    W_dec: Float32,
    norms: Float32,
    k: int,
    acts: Float32,
    indices: Any,
    decoded: Float32,
) -> None:
    """Codes of a block of tokens, and their reconstruction without the bias.

    centered [n, d_in] is x - b_dec; the scores' arguments are those of `candidates`, for n tokens;
    acts and indices [n, k] and decoded [n, d_in] are written. A token with fewer than k positive
    pre-activations is filled with zeros.
    """
    d_in = W_dec.shape[1]
    scratch = np.empty(scores.shape[1], np.float32)
    exact = np.empty(scores.shape[1], np.float32)
    found = np.empty(scores.shape[1], np.int32)
    for r in range(centered.shape[0]):
        count = candidates(
            scores[r], group_bounds[r], errors, group_errors, x_errors[r], k, scratch, found
        )
        for i in range(count):
            j = found[i]
            exact[i] = (dot(centered[r], W_enc[j]) + b_enc[j]) * norms[j]
            scratch[i] = exact[i]
        threshold = np.float32(0)
        if count > k:
            threshold = max(threshold, kth_largest(scratch, count, k))
        row = decoded[r]
        row[:] = 0
        kept = 0
        for above in (True, False):  # those equal to the k-th only fill what is left
            for i in range(count):
                is_kept = exact[i] > threshold if above else exact[i] == threshold
                if is_kept and exact[i] > 0 and kept < k:
                    j = found[i]
                    act = exact[i] / norms[j]
                    acts[r, kept] = act
                    indices[r, kept] = j
                    kept += 1
                    feature = W_dec[j]
                    for c in range(d_in):
                        row[c] += act * feature[c]
        while kept < k:
            acts[r, kept] = 0
            indices[r, kept] = 0
            kept += 1


@compiled
def sort_by_latent(acts: Float32, indices: Any, starts: Any, tokens: Any, values: Float32) -> None:
    """The active pairs of [n, k] codes in order of latent, then token.

    `starts` [d_sae + 1] receives where each latent's pairs begin in `tokens` and `values` [n k].
    """
    n, k = acts.shape
    starts[:] = 0
    for r in range(n):
        for i in range(k):
            if acts[r, i] > 0:
                starts[indices[r, i] + 1] += 1
    for j in range(1, starts.shape[0]):
        starts[j] += starts[j - 1]
    for r in range(n):
        for i in range(k):
            if acts[r, i] > 0:
                j = indices[r, i]
                tokens[starts[j]] = r
                values[starts[j]] = acts[r, i]
                starts[j] += 1
    for j in range(starts.shape[0] - 1, 0, -1):
        starts[j] = starts[j - 1]
    starts[0] = 0


@compiled
def sum_rows(
    first: int, last: int, tokens: Any, weights: Float32, rows: Float32, total: Float32
) -> None:
    """total = sum of weights[p] rows[tokens[p]] over the pairs `first` to `last`."""
    total[:] = 0
    for p in range(first, last):
        row, weight = rows[tokens[p]], weights[p]
        for c in range(total.shape[0]):
            total[c] += weight * row[c]


@compiled
def pre_activation_gradients(
    first: int,
    last: int,
    starts: Any,
    tokens: Any,
    values: Float32,
    x_hat_grad: Float32,
    W_dec: Float32,
    act_grad: float,
    grad_norms: Float32,
    x_norms: Float32,
    pair_grads: Float32,
    bias_grads: Float32,
) -> float | np.floating:
    """Gradients of the pre-activations of the latents `first` to `last`.

    x_hat_grad [n, d_in] is dL/dx_hat, `act_grad` what every activation adds to L's derivative (the
    L1 term); `grad_norms` and `x_norms` [n] are the norms of x_hat_grad's and the centered inputs'
    rows. Writes `pair_grads` (beside `values`) and their sums over each latent's tokens,
    `bias_grads` [d_sae]. Returns an upper bound of the squared norm of the latents' gradients in
    W_dec and W_enc, by the triangle inequality.
    """
    squares = 0.0
    for j in range(first, last):
        bias, dec, enc = np.float32(0), np.float32(0), np.float32(0)
        for p in range(starts[j], starts[j + 1]):
            t = tokens[p]
            gradient = dot(x_hat_grad[t], W_dec[j]) + np.float32(act_grad)
            pair_grads[p] = gradient
            bias += gradient
            dec += values[p] * grad_norms[t]
            enc += abs(gradient) * x_norms[t]
        bias_grads[j] = bias
        squares += (dec + enc) * (dec + enc)
    return squares


@compiled
def squared_norm(
    first: int,
    last: int,
    starts: Any,
    tokens: Any,
    values: Float32,
    pair_grads: Float32,
    x_hat_grad: Float32,
    centered: Float32,
    W_dec: Float32,
    project: bool,
    tied: bool,
    extra: Any,
    extra_dec: Float32,
    extra_enc: Float32,
) -> float:
    """Squared norm of the gradients in W_dec and W_enc of the latents `first` to `last`.

    extra[j] >= 0 names the row of `extra_*` that holds more gradient for latent j (AuxK).
    """
    d_in = W_dec.shape[1]
    dec, enc = np.empty(d_in, np.float32), np.empty(d_in, np.float32)
    squares = 0.0
    for j in range(first, last):
        if starts[j] == starts[j + 1] and extra[j] < 0:
            continue
        row_gradients(
            j,
            starts,
            tokens,
            values,
            pair_grads,
            x_hat_grad,
            centered,
            W_dec[j],
            project,
            tied,
            extra[j],
            extra_dec,
            extra_enc,
            dec,
            enc,
        )
        squares += dot(dec, dec)
        if not tied:
            squares += dot(enc, enc)
    return squares


@compiled
def row_gradients(
    j: int,
    starts: Any,
    tokens: Any,
    values: Float32,
    pair_grads: Float32,
    x_hat_grad: Float32,
    centered: Float32,
    row: Float32,
    project: bool,
    tied: bool,
    more: int,
    extra_dec: Float32,
    extra_enc: Float32,
    dec: Float32,
    enc: Float32,
) -> None:
    """One latent's gradient in its decoder row and its encoder row (both in `dec` when tied).

    With `project`, the part of the decoder's along the row is removed.
    """
    sum_rows(starts[j], starts[j + 1], tokens, values, x_hat_grad, dec)
    sum_rows(starts[j], starts[j + 1], tokens, pair_grads, centered, enc)
    if more >= 0:
        for c in range(dec.shape[0]):
            dec[c] += extra_dec[more, c]
            enc[c] += extra_enc[more, c]
    if tied:
        for c in range(dec.shape[0]):
            dec[c] += enc[c]
    if project:
        along = dot(dec, row) / max(dot(row, row), np.float32(1e-12))
        for c in range(dec.shape[0]):
            dec[c] -= along * row[c]


@compiled
def adam(
    weight: Float32,
    gradient: Float32,
    scale: float,
    mean: Float32,
    square: Float32,
    step_size: float,
    root_correction: float,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> None:
    """Adam on one row, its gradient times `scale`.

    `step_size` is lr / (1 - beta1^t), `root_correction` 1 / sqrt(1 - beta2^t).
    """
    b1, b2 = np.float32(beta1), np.float32(beta2)
    rest1 = np.float32((1 - beta1) * scale)
    rest2 = np.float32((1 - beta2) * scale * scale)
    size, root, eps = np.float32(step_size), np.float32(root_correction), np.float32(epsilon)
    for c in range(weight.shape[0]):
        m = b1 * mean[c] + rest1 * gradient[c]
        v = b2 * square[c] + rest2 * gradient[c] * gradient[c]
        mean[c] = m
        square[c] = v
        weight[c] -= size * m / (np.sqrt(v) * root + eps)


@compiled
def update(
    first: int,
    last: int,
    starts: Any,
    tokens: Any,
    values: Float32,
    pair_grads: Float32,
    x_hat_grad: Float32,
    centered: Float32,
    W_dec: Float32,
    W_enc: Float32,
    dec_mean: Float32,
    dec_square: Float32,
    enc_mean: Float32,
    enc_square: Float32,
    normalize: bool,
    tied: bool,
    extra: Any,
    extra_dec: Float32,
    extra_enc: Float32,
    clip: float,
    step_size: float,
    root_correction: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    norms: Float32,
    norm_limit: float,
    panels: Any,
    scales: Float32,
) -> None:
    """Adam on the latents `first` to `last`, their gradients multiplied by `clip`.

    Rewrites the latents' decoder norms and, unless `panels` is empty, their shadow.
    """
    d_in = W_dec.shape[1]
    dec, enc = np.zeros(d_in, np.float32), np.zeros(d_in, np.float32)
    is_zero = True
    for j in range(first, last):
        if starts[j] < starts[j + 1] or extra[j] >= 0:
            row_gradients(
                j,
                starts,
                tokens,
                values,
                pair_grads,
                x_hat_grad,
                centered,
                W_dec[j],
                normalize,
                tied,
                extra[j],
                extra_dec,
                extra_enc,
                dec,
                enc,
            )
            is_zero = False
        elif not is_zero:
            dec[:] = 0
            enc[:] = 0
            is_zero = True
        adam(
            W_dec[j],
            dec,
            clip,
            dec_mean[j],
            dec_square[j],
            step_size,
            root_correction,
            beta1,
            beta2,
            epsilon,
        )
        if normalize:
            inverse = np.float32(1) / max(norm(W_dec[j]), np.float32(1e-12))
            for c in range(d_in):
                W_dec[j, c] *= inverse
        if not tied:
            adam(
                W_enc[j],
                enc,
                clip,
                enc_mean[j],
                enc_square[j],
                step_size,
                root_correction,
                beta1,
                beta2,
                epsilon,
            )
        norms[j] = norm(W_dec[j])
        if panels.shape[0] and (j + 1 == last or j % GROUP == GROUP - 1):
            write_panel(W_enc, j // GROUP, norm_limit, panels, scales)
