"""Selects, from approximate scores with error bounds, the few latents that need exact scores.

Called by `searcher`; `search` computes the scores and explains the bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_engine.kernels.compiled import compiled, compiled_finite
from sae_engine.kernels.cpu import products
from sae_engine.kernels.cpu.products import GROUP
from sae_engine.kernels.cpu.vectors import Float32, Int32

BISECTIONS = 12
"""Steps of the search for a threshold, which may be too low by 1/4096 of the largest score."""


@compiled_finite
def reached_by(values: Float32, count: int, k: int) -> np.float32:
    """A positive threshold that at least k of the first `count` values reach, and few more; 0 if
    none is found.

    Bisection, because counting vectorizes and is therefore faster than a selection. The maximum is
    taken of the bits as integers, which vectorizes too: positive floats are in the same order.
    """
    bits, largest = values.view(np.int32), np.int32(0)
    for i in range(count):
        largest = max(largest, bits[i])
    low, high = np.float32(0), np.int32(largest).view(np.float32)
    for _ in range(BISECTIONS):
        middle = np.float32(0.5) * (low + high)
        reached = np.int32(0)
        for i in range(count):
            reached += np.int32(values[i] >= middle)
        if reached >= k:
            low = middle
            if reached == k:
                break
        else:
            high = middle
    return low


@compiled
def candidates_of(
    scores: Float32,
    group_bounds: Float32,
    errors: Float32,
    group_errors: Float32,
    x_error: float,
    k: int,
    scratch: Float32,
    open_groups: Any,
    found: Any,
) -> int:
    """Write to `found` the latents that may be among one token's k best; returns their number.

    For P groups: approximate scores [>= P GROUP], lower bounds of each group's best score
    group_bounds [>= P], the latents' errors [P GROUP] and the largest error of each group,
    group_errors [P]. Only positive scores count. `scratch`, as long as `scores`, and `open_groups`
    [P] are work space.

    At least k latents reach the k-th largest group bound, so a latent whose upper bound is below it
    is not among the k best; neither is any latent of a group whose upper bound is below it. The
    lower bounds of the remaining latents then give a higher threshold.
    """
    num_groups = group_errors.shape[0]
    threshold = reached_by(group_bounds, num_groups, k)
    num_open = 0
    for p in range(num_groups):
        if group_bounds[p] + 2 * x_error * group_errors[p] >= threshold:
            products.prefetch(np.uint64(scores.ctypes.data + 4 * GROUP * p))
            open_groups[num_open] = p
            num_open += 1
    count = 0
    for q in range(num_open):
        first = open_groups[q] * GROUP
        for j in range(first, first + GROUP):
            if scores[j] + x_error * errors[j] >= threshold:
                found[count] = j
                count += 1
    if count <= k:
        return count
    for i in range(count):
        scratch[i] = scores[found[i]] - x_error * errors[found[i]]
    threshold = max(threshold, reached_by(scratch, count, k))
    kept = 0
    for i in range(count):
        j = found[i]
        if scores[j] + x_error * errors[j] >= threshold:
            found[kept] = j
            kept += 1
    return kept


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
    """The candidates of a block of n tokens: the first counts[r] of found[r], found [n, d_sae].

    The other arguments are those of `candidates_of` for n tokens.
    """
    scratch = np.empty(scores.shape[1], np.float32)
    open_groups = np.empty(group_errors.shape[0], np.int32)
    for r in range(counts.shape[0]):
        counts[r] = candidates_of(
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
    """Of the latents `which` those that may be positive, written like `find_candidates`."""
    for r in range(counts.shape[0]):
        count = 0
        for i in range(which.shape[0]):
            j = which[i]
            if scores[r, j] + x_errors[r] * errors[j] > 0:
                found[r, count] = j
                count += 1
        counts[r] = count
