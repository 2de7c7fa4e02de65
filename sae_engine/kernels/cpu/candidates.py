"""From a block of tokens' scores with bounds to the few latents that are looked at exactly."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_engine.kernels.compiled import compiled, compiled_finite
from sae_engine.kernels.cpu import products
from sae_engine.kernels.cpu.products import GROUP
from sae_engine.kernels.cpu.vectors import Float32, Int32

BISECTIONS = 12
"""Steps in which a threshold is found; it may be too low by a 4096th of the largest score."""


@compiled_finite
def reached_by(values: Float32, count: int, k: int) -> np.float32:
    """A number above 0 that at least k of the first `count` values reach, and few more; or 0.

    By bisection: counting is vectorized, which makes it faster than a selection. So is a maximum of
    integers, and as such positive numbers are in the same order.
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
    """Latents that may be among the k best of one token; their numbers go to `found`.

    scores [>= P GROUP], group_bounds [>= P], errors [P GROUP], group_errors [P] (the group's
    largest). Only positive scores count. `scratch` is as long as `scores`, `open_groups` [P] holds
    the groups that are looked into. Returns how many were found.
    """
    num_groups = group_errors.shape[0]
    threshold = reached_by(group_bounds, num_groups, k)
    num_open = 0
    for p in range(num_groups):
        if group_bounds[p] + 2 * x_error * group_errors[p] >= threshold:
            products.fetch(np.uint64(scores.ctypes.data + 4 * GROUP * p))
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
    """The candidates of a block of n tokens: the first `counts[r]` of `found[r]`.

    Arguments are those of `candidates_of`, for n tokens; found is [n, d_sae].
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
    """Those of the latents `which` that may be positive, like `find_candidates`."""
    for r in range(counts.shape[0]):
        count = 0
        for i in range(which.shape[0]):
            j = which[i]
            if scores[r, j] + x_errors[r] * errors[j] > 0:
                found[r, count] = j
                count += 1
        counts[r] = count
