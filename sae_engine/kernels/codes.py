"""Codes on a CPU: from a search's candidates to each token's k best, and what they decode to.

The candidates' exact scores are found in order of latents, so that a row of the encoder is read
once per batch; decoding goes by tokens, several rows at a time, so that their memory is waited for
together. How candidates are found is `search`'s business, gradients and Adam are `rows`'.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_engine.kernels.compiled import compiled
from sae_engine.kernels.search import candidates, kth_largest

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


@compiled
def dot(a: Float32, b: Float32) -> np.float32:
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@compiled
def four_dots(
    a: Float32, b: Float32, c: Float32, d: Float32, row: Float32
) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """The dot products of four rows with one; their memory is waited for together."""
    of_a, of_b, of_c, of_d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for i in range(row.shape[0]):
        of_a += a[i] * row[i]
        of_b += b[i] * row[i]
        of_c += c[i] * row[i]
        of_d += d[i] * row[i]
    return of_a, of_b, of_c, of_d


@compiled
def dots(rows: Float32, which: Int32, count: int, row: Float32, products: Float32) -> None:
    """products[i] = rows[which[i]] . row for the first `count`."""
    for i in range(0, count - 1, 4):
        # beyond the last one, that one again
        j, k, m = min(i + 1, count - 1), min(i + 2, count - 1), min(i + 3, count - 1)
        products[i], products[j], products[k], products[m] = four_dots(
            rows[which[i]], rows[which[j]], rows[which[k]], rows[which[m]], row
        )
    if count % 4 == 1:
        products[count - 1] = dot(rows[which[count - 1]], row)


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
def find_positive(
    scores: Float32,
    errors: Float32,
    x_errors: Float32,
    which: Int32,
    found: Int32,
    counts: Int32,
) -> None:
    """Those of the latents `which` that may be positive, like `find_candidates`."""
    for r in range(counts.shape[0]):
        count = 0
        for i in range(which.shape[0]):
            j = which[i]
            if scores[r, j] + x_errors[r] * errors[j] > 0:
                found[r, count] = j
                count += 1
        counts[r] = count


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
    products = np.empty(centered.shape[0], np.float32)
    for part in range(share.first, share.sums.shape[0], share.step):
        for j in range(share.bounds[part], share.bounds[part + 1]):
            first, last = pairs.starts[j], pairs.starts[j + 1]
            dots(centered, pairs.tokens[first:last], last - first, W_enc[j], products)
            for p in range(first, last):
                score = (products[p - first] + b_enc[j]) * norms[j]
                scores[pairs.tokens[p], pairs.slots[p]] = score


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

    Writes activations and latents [k], filled up with zeros; returns how many are active. `scratch`
    has room for `count`.
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
    if is_choice:  # those equal to the k-th fill what is left
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
    """The codes [n, k] of n tokens from their candidates, and how many are active, kept [n]."""
    scratch = np.empty(max(1, counts.max()), np.float32)
    for r in range(counts.shape[0]):
        kept[r] = keep_row(found[r], counts[r], scores[r], norms, k, scratch, acts[r], latents[r])


@compiled
def weighted_sum(
    weights: Float32, which: Int32, count: int, rows: Float32, is_first: bool, total: Float32
) -> None:
    """Add weights[i] rows[which[i]] for the first `count` to `total`, or write them over it if
    `is_first`; four at a time, as their memory is waited for together.
    """
    for i in range(count % 4):
        a, row_a = weights[i], rows[which[i]]
        if is_first:
            for x in range(total.shape[0]):
                total[x] = a * row_a[x]
        else:
            for x in range(total.shape[0]):
                total[x] += a * row_a[x]
        is_first = False
    if is_first:
        total[:] = 0
    for i in range(count % 4, count, 4):
        a, b, c, d = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        row_a, row_b = rows[which[i]], rows[which[i + 1]]
        row_c, row_d = rows[which[i + 2]], rows[which[i + 3]]
        for x in range(total.shape[0]):
            total[x] += (a * row_a[x] + b * row_b[x]) + (c * row_c[x] + d * row_d[x])


@compiled
def decode(acts: Float32, latents: Int32, kept: Int32, W_dec: Float32, decoded: Float32) -> None:
    """decoded [n, d_in] = the sums of the codes' decoder rows, without the bias."""
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
    """residual [n, d_in] = target - what the codes decode to, and its rows' `norms` [n].

    Also its dot products with the decoder rows of the codes, projections [n, k], as long as those
    are near: of them the activations' gradients are made. Those beyond `kept` are not written.
    """
    for r in range(kept.shape[0]):
        row = residual[r]
        weighted_sum(acts[r], latents[r], kept[r], W_dec, True, row)
        for x in range(row.shape[0]):
            row[x] = target[r, x] - row[x]
        norms[r] = norm(row)
        dots(W_dec, latents[r], kept[r], row, projections[r])
