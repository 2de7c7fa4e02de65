"""Arithmetic on rows of float32 matrices, for the other CPU kernels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sae_engine.kernels.compiled import compiled

Float32, Int32 = NDArray[np.float32], NDArray[np.int32]


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
    """The dot products of four rows with one; the cache misses of the four overlap."""
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
        # past the end, the last one again
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
def weighted_sum(
    weights: Float32, which: Int32, count: int, rows: Float32, is_first: bool, total: Float32
) -> None:
    """total += the sum of weights[i] rows[which[i]] over the first `count`; with `is_first`, total
    is overwritten instead. Four rows at a time, so that their cache misses overlap.
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
