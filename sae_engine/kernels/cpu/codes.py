"""Codes on a CPU: from candidates to each token's k best latents, and their decoding.

Exact scores are computed latent by latent, so each encoder row is read once per batch. Decoding
goes token by token, several decoder rows at a time, so that their cache misses overlap. Called by
`step`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sae_engine.kernels.compiled import compiled
from sae_engine.kernels.cpu.division import Share
from sae_engine.kernels.cpu.vectors import Float32, Int32, dots, norm, weighted_sum


class Pairs(NamedTuple):
    """(latent, token) pairs in order of latent, then token."""

    starts: Int32
    """[d_sae + 1]: where each latent's pairs begin."""
    tokens: Int32
    """[pairs]"""
    slots: Int32
    """[pairs]: position within the token's row of latents."""


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
    """scores[token, slot] = (x . W_enc,j + b_enc,j) |W_dec,j| for the pairs of the share's latents.

    centered [n, d_in] is x - b_dec, `norms` are the |W_dec,j|.
    """
    products = np.empty(centered.shape[0], np.float32)
    for part in range(share.first, share.sums.shape[0], share.step):
        for j in range(share.bounds[part], share.bounds[part + 1]):
            first, last = pairs.starts[j], pairs.starts[j + 1]
            dots(centered, pairs.tokens[first:last], last - first, W_enc[j], products)
            for p in range(first, last):
                score = (products[p - first] + b_enc[j]) * norms[j]
                scores[pairs.tokens[p], pairs.slots[p]] = score


@compiled
def kth_largest(values: Float32, count: int, k: int) -> float:
    """The k-th largest of the first `count` values, which it reorders (Hoare's quickselect)."""
    low, high, wanted = 0, count - 1, k - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return values[wanted]


@compiled
def keep_row(
    found: Int32,
    count: int,
    scores: Float32,
    norms: Float32,
    k: int,
    scratch: Float32,
    acts: Float32,
    latents: Int32,
) -> int:
    """One token's code: of its first `count` candidates the k with the largest positive scores.

    Writes activations and latents [k], padded with zeros; returns the number of active ones.
    `scratch` has space for `count` values.
    """
    positive = 0
    for i in range(count):
        if scores[i] > 0:
            scratch[positive] = scores[i]
            positive += 1
    is_choice = positive > k
    threshold = kth_largest(scratch, positive, k) if is_choice else np.float32(0)
    n = 0
    for i in range(count):
        if scores[i] > threshold:
            acts[n] = scores[i] / norms[found[i]]
            latents[n] = found[i]
            n += 1
    if is_choice:  # scores equal to the k-th fill the remaining slots
        for i in range(count):
            if scores[i] == threshold and n < k:
                acts[n] = threshold / norms[found[i]]
                latents[n] = found[i]
                n += 1
    acts[n:] = 0
    latents[n:] = 0
    return n


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
    """The codes [n, k] of n tokens from their candidates, and their numbers of active latents,
    kept [n].
    """
    scratch = np.empty(max(1, counts.max()), np.float32)
    for r in range(counts.shape[0]):
        kept[r] = keep_row(found[r], counts[r], scores[r], norms, k, scratch, acts[r], latents[r])


@compiled
def decode(acts: Float32, latents: Int32, kept: Int32, W_dec: Float32, decoded: Float32) -> None:
    """decoded [n, d_in] = sums of the codes' decoder rows, weighted by activations; no bias."""
    for r in range(kept.shape[0]):
        weighted_sum(acts[r], latents[r], kept[r], W_dec, True, decoded[r])


@compiled
def compare(
    acts: Float32,
    latents: Int32,
    kept: Int32,
    W_dec: Float32,
    target: Float32,
    residual: Float32,
    norms: Float32,
    projections: Float32,
) -> None:
    """residual [n, d_in] = target - decoded codes, and the norms [n] of its rows.

    Also projections [n, k], the residual's dot products with the codes' decoder rows, from which
    the activations' gradients are computed; here, because the rows are still in cache. Those beyond
    `kept` are not written.
    """
    for r in range(kept.shape[0]):
        row = residual[r]
        weighted_sum(acts[r], latents[r], kept[r], W_dec, True, row)
        for x in range(row.shape[0]):
            row[x] = target[r, x] - row[x]
        norms[r] = norm(row)
        dots(W_dec, latents[r], kept[r], row, projections[r])
