"""Finding each token's k strongest latents on a CPU, without a dense float32 matmul.

The encoder matmul is only a search, so it is done in 16-bit integers: rows of `x` and `W_enc` are
rounded to multiples of a scale of their own, chosen so that their 32-bit integer dot products
cannot overflow (Cauchy-Schwarz). Rounding moves a dot product by at most a known bound, so the
latents whose upper bound reaches the k-th largest lower bound are certain to hold the k strongest.
Those few are computed again in float32. What comes out is what a float32 search gives; the integer
dot products only say where to look.

Without AVX2 the scores come from a float32 matmul and the same selection.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from sae_engine.kernels.compiled import compiled, compiled_finite

Float32 = NDArray[np.float32]

GROUP = 16
"""Latents in one panel of the shadow; their scores are bounded together."""
TILE_ROWS = 6
"""Tokens whose dot products with a panel are kept in registers."""
BISECTIONS = 12
"""Steps in which a threshold is found; it may be too low by a 4096th of the largest score."""
PAIRS_PER_PASS = 256
"""Pairs of coordinates after which a panel's part leaves the first-level cache."""

HAS_AVX2: bool = bool(llvm.get_host_cpu_features().get("avx2", False))


def largest_norm(d_in: int) -> float:
    """Norm to which rows are scaled, so that no dot product of two rounded rows reaches 2^31."""
    return 2.0**15.5 - 0.5 * (d_in + 1) ** 0.5 - 1


def error_factor(d_in: int) -> float:
    """Bound of |rounded dot product - dot product|, over the product of the scaled norms.

    With |x - x'| <= sx sqrt(d) / 2 (a hundredth more for float32) for rounded rows of scale sx, and
    the same for w:
    |x'.w' - x.w| <= |x - x'| |w| + |x'| |w - w'|. The last addend covers the float32 rounding of
    scores and dot products.
    """
    rounding = 0.505 * d_in**0.5
    norm = largest_norm(d_in)
    return rounding / norm * (2 + rounding / norm) + 4e-6


def _make_add_products(typingctx: Any, x: Any, x_stride: Any, w: Any, pairs: Any, out: Any) -> Any:
    """out[r, c] += sum over `pairs` of x[r, 2i] w[i, c, 0] + x[r, 2i + 1] w[i, c, 1].

    Addresses and a stride in bytes: x int16 [TILE_ROWS, ...], w int16 [pairs, GROUP, 2], out int32
    [TILE_ROWS, GROUP]. The accumulators stay in vector registers.
    """
    signature = types.void(types.uintp, types.intp, types.uintp, types.intp, types.uintp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, x_stride, w, pairs, out = arguments
        i32, i64 = ir.IntType(32), ir.IntType(64)
        ints, shorts = ir.VectorType(i32, 8), ir.VectorType(ir.IntType(16), 16)
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ints, [shorts, shorts]), "llvm.x86.avx2.pmadd.wd"
        )

        def at(address: Any, offset: Any, kind: Any) -> Any:
            return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

        def load(address: Any, offset: Any, kind: Any, align: int) -> Any:
            value = builder.load(at(address, offset, kind))
            value.align = align
            return value

        rows = [builder.mul(x_stride, i64(r)) for r in range(TILE_ROWS)]
        places = [(r, half, i64(64 * r + 32 * half)) for r in range(TILE_ROWS) for half in (0, 1)]
        sums = [cgutils.alloca_once(builder, ints) for _ in places]
        for (_, _, place), total in zip(places, sums, strict=True):
            builder.store(load(out, place, ints, 4), total)
        undefined = ir.Constant(ints, ir.Undefined)
        with cgutils.for_range(builder, pairs, intp=i64) as loop:
            weights_at = builder.mul(loop.index, i64(64))
            weights = [
                builder.bitcast(load(w, builder.add(weights_at, i64(32 * half)), ints, 4), shorts)
                for half in (0, 1)
            ]
            pair_at = builder.mul(loop.index, i64(4))
            spread = []
            for row in rows:
                pair = load(x, builder.add(row, pair_at), i32, 2)
                vector = builder.insert_element(undefined, pair, i32(0))
                vector = builder.shuffle_vector(vector, undefined, ir.Constant(ints, [0] * 8))
                spread.append(builder.bitcast(vector, shorts))
            for (r, half, _), total in zip(places, sums, strict=True):
                product = builder.call(multiply_add, [spread[r], weights[half]])
                builder.store(builder.add(builder.load(total), product), total)
        for (_, _, place), total in zip(places, sums, strict=True):
            builder.store(builder.load(total), at(out, place, ints)).align = 4
        return context.get_dummy_value()

    return signature, generate


_add_products: Any = intrinsic(_make_add_products)


def _make_score_group(
    typingctx: Any, sums: Any, gains: Any, offsets: Any, errors: Any, scale: Any, x_error: Any,
    scores: Any,
) -> Any:  # fmt: skip
    """scores[c] = sums[c] scale gains[c] + offsets[c]; returns the largest of scores[c] - x_error
    errors[c].

    Addresses of GROUP int32 and float32 and two float32. Written out because compilers do not
    vectorize a maximum.
    """
    single = types.float32
    signature = single(
        types.uintp, types.uintp, types.uintp, types.uintp, single, single, types.uintp
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, gains, offsets, errors, scale, x_error, scores = arguments
        i32, i64, f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
        ints, floats = ir.VectorType(i32, 8), ir.VectorType(f32, 8)
        undefined = ir.Constant(floats, ir.Undefined)

        def at(address: Any, half: int, kind: Any) -> Any:
            return builder.inttoptr(builder.add(address, i64(32 * half)), kind.as_pointer())

        def load(address: Any, half: int, kind: Any) -> Any:
            value = builder.load(at(address, half, kind))
            value.align = 4
            return value

        def spread(value: Any) -> Any:
            vector = builder.insert_element(undefined, value, i32(0))
            return builder.shuffle_vector(vector, undefined, ir.Constant(ints, [0] * 8))

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        scale, x_error = spread(scale), spread(x_error)
        bounds = []
        for half in (0, 1):
            gain = builder.fmul(scale, load(gains, half, floats))
            product = builder.fmul(builder.sitofp(load(sums, half, ints), floats), gain)
            score = builder.fadd(product, load(offsets, half, floats))
            builder.store(score, at(scores, half, floats)).align = 4
            error = builder.fmul(x_error, load(errors, half, floats))
            bounds.append(builder.fsub(score, error))
        best = larger(*bounds)
        for distance in (4, 2, 1):
            order = [(i + distance) % 8 for i in range(8)]
            best = larger(best, builder.shuffle_vector(best, undefined, ir.Constant(ints, order)))
        return builder.extract_element(best, i32(0))

    return signature, generate


_score_group: Any = intrinsic(_make_score_group)


@compiled_finite
def round_row(row: Float32, norm_limit: float, rounded: Any) -> np.float32:
    """Round a row [d] to int16 multiples [>= d] of the scale that is returned."""
    squares = np.float32(0)
    for i in range(row.shape[0]):
        squares += row[i] * row[i]
    largest = np.float32(0)
    for i in range(row.shape[0]):
        largest = max(largest, abs(row[i]))
    scale = np.float32(max(np.sqrt(squares) / norm_limit, largest / 32767.0) * 1.000001)
    inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
    for i in range(row.shape[0]):
        rounded[i] = np.int16(np.rint(row[i] * inverse))
    return scale


@compiled
def round_rows(rows: Float32, norm_limit: float, rounded: Any, scales: Float32) -> None:
    """Round rows [n, d] to int16 [n, >= d] multiples of `scales` [n]."""
    for r in range(rows.shape[0]):
        scales[r] = round_row(rows[r], norm_limit, rounded[r])


@compiled
def write_panel(W_enc: Float32, p: int, norm_limit: float, panels: Any, scales: Float32) -> None:
    """Write one group's panel of the shadow, int32 [P, pairs, GROUP]: two int16 in each."""
    d_sae = W_enc.shape[0]
    rounded = np.zeros((GROUP, 2 * panels.shape[1]), np.int16)
    first = p * GROUP
    for c in range(min(GROUP, d_sae - first)):
        scales[first + c] = round_row(W_enc[first + c], norm_limit, rounded[c])
    pairs, panel = rounded.view(np.int32), panels[p]
    for i in range(panel.shape[0]):
        for c in range(GROUP):
            panel[i, c] = pairs[c, i]


@compiled
def write_panels(
    W_enc: Float32, first: int, last: int, norm_limit: float, panels: Any, scales: Float32
) -> None:
    """Write the shadow of the latents `first` to `last`, whole groups of them."""
    for p in range(first // GROUP, (last + GROUP - 1) // GROUP):
        write_panel(W_enc, p, norm_limit, panels, scales)


@compiled_finite
def integer_scores(
    x: Any,
    x_scales: Float32,
    panels: Any,
    gains: Float32,
    offsets: Float32,
    errors: Float32,
    x_errors: Float32,
    scores: Float32,
    group_bounds: Float32,
) -> None:
    """Approximate scores of a block of tokens, and a lower bound of each group's best score.

    x int16 [n, 2 pairs], n a multiple of TILE_ROWS; panels int32 [P, pairs, GROUP]; per
    latent, padded to 16 P: `gains` (scale times decoder norm), `offsets` (b_enc times decoder
    norm), `errors`; scores [n, 16 P] and group_bounds [n, P] are written. The true score differs
    from `scores[r, j]` by at most `x_errors[r] errors[j]`.
    """
    n = x.shape[0]
    num_panels, pairs = panels.shape[:2]
    sums = np.empty((n, GROUP), np.int32)
    x_at, stride, panels_at, sums_at = (
        x.ctypes.data,
        x.strides[0],
        panels.ctypes.data,
        sums.ctypes.data,
    )
    for p in range(num_panels):
        sums[:] = 0
        for start in range(0, pairs, PAIRS_PER_PASS):
            count = min(PAIRS_PER_PASS, pairs - start)
            panel_at = np.uint64(panels_at + (p * pairs + start) * 64)
            for r in range(0, n, TILE_ROWS):
                _add_products(
                    np.uint64(x_at + r * stride + 4 * start),
                    stride,
                    panel_at,
                    count,
                    np.uint64(sums_at + 64 * r),
                )
        skip = 4 * GROUP * p
        for r in range(n):
            group_bounds[r, p] = _score_group(
                np.uint64(sums_at + 64 * r),
                np.uint64(gains.ctypes.data + skip),
                np.uint64(offsets.ctypes.data + skip),
                np.uint64(errors.ctypes.data + skip),
                x_scales[r],
                x_errors[r],
                np.uint64(scores.ctypes.data + r * scores.strides[0] + skip),
            )


@compiled_finite
def float_group_bounds(scores: Float32, group_bounds: Float32) -> None:
    """Each group's best score, for scores [n, 16 P] that are exact already."""
    for r in range(scores.shape[0]):
        for p in range(group_bounds.shape[1]):
            best = np.float32(-np.inf)
            for c in range(GROUP):
                best = max(best, scores[r, p * GROUP + c])
            group_bounds[r, p] = best


@compiled
def kth_largest(values: Float32, count: int, k: int) -> float:
    """The k-th largest of the first `count` values, which are reordered (Hoare's selection)."""
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


@compiled_finite
def reached_by(values: Float32, count: int, k: int) -> np.float32:
    """A number above 0 that at least k of the first `count` values reach, and few more; or 0.

    By bisection: counting is vectorized, which makes it faster than a selection.
    """
    low, high = np.float32(0), np.float32(0)
    for i in range(count):
        high = max(high, values[i])
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
def candidates(
    scores: Float32,
    group_bounds: Float32,
    errors: Float32,
    group_errors: Float32,
    x_error: float,
    k: int,
    scratch: Float32,
    found: Any,
) -> int:
    """Latents that may be among the k best of one token; their numbers go to `found`.

    scores [16 P], group_bounds [P], errors [16 P], group_errors [P] (the group's largest). Only
    positive scores count. `scratch` is as long as `scores`. Returns how many were found.
    """
    num_groups = group_bounds.shape[0]
    threshold = reached_by(group_bounds, num_groups, k)
    count = 0
    for p in range(num_groups):
        if group_bounds[p] + 2 * x_error * group_errors[p] >= threshold:
            for j in range(p * GROUP, (p + 1) * GROUP):
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
