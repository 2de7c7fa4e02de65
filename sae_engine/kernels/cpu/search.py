"""Approximate scores of all latents on a CPU, with error bounds, without a dense float32 matmul.

The encoder matmul only has to find each token's k strongest latents, so the rows of x and W_enc are
rounded to 16 bits: to bfloat16 where the processor multiplies bfloat16 tiles, else to integers with
one scale per row, chosen so that 32-bit dot products cannot overflow (Cauchy-Schwarz). How far
rounding moved each row is measured, and this bounds the error of every dot product. So the latents
whose upper bound reaches the k-th largest lower bound certainly include the k strongest.
Only those few are computed again, in float32: the result equals that of a float32 search.

On a processor without such instructions, scores come from a float32 matmul. Called by `searcher`;
docs/decisions/0007 and 0023 give the reasons.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from sae_engine.kernels import memory
from sae_engine.kernels.compiled import compiled, compiled_finite
from sae_engine.kernels.cpu import products
from sae_engine.kernels.cpu.division import Share
from sae_engine.kernels.cpu.products import GROUP, INTEGER_ROWS, TILE
from sae_engine.kernels.cpu.vectors import Float32, norm

PAIRS_PER_PASS = 256
"""Pairs of coordinates per pass over a panel, so that its part stays in the first-level cache."""


class Search(Enum):
    """Number format in which the approximate scores are computed."""

    TILES = "bfloat16"
    INTEGERS = "integers"
    FLOATS = "float32"

    @property
    def token_multiple(self) -> int:
        """Blocks of tokens are padded to a multiple of this."""
        return {Search.TILES: 2 * TILE, Search.INTEGERS: INTEGER_ROWS, Search.FLOATS: 1}[self]

    @property
    def group_multiple(self) -> int:
        """Groups of latents are padded to a multiple of this."""
        return 2 if self is Search.TILES else 1

    def pairs(self, d_in: int) -> int:
        """Pairs of coordinates in a rounded row; those beyond `d_in` are 0."""
        if self is Search.TILES:
            return -(-d_in // (2 * TILE)) * TILE
        return -(-d_in // 2) if self is Search.INTEGERS else 0


SEARCHES = [
    *[Search.TILES] * products.HAS_TILES,
    *[Search.INTEGERS] * products.HAS_INTEGERS,
    Search.FLOATS,
]
"""Those that this processor supports, fastest first."""


class Rounding(NamedTuple):
    """How rows are rounded, and how that bounds the errors of dot products.

    For rows x, w rounded to x', w', the error of x'.w' is at most |x - x'| |w| + |x'| |w - w'|,
    plus the error of summing in float32. It is bounded by the product of one number per row:
    |x'| + |x - x'| / typical and max(|w - w'|, typical |w|) + accumulated |w'|, for any `typical`.
    """

    norm_limit: float
    """Norm to which rows are scaled before rounding, so that no integer dot product reaches 2^31; 0
    for bfloat16, which is not scaled.
    """
    typical: float
    """Estimate of |w - w'| / |w|; the bound is narrowest if it is exact."""
    accumulated: float
    """Error of float32 arithmetic in a dot product and its score, relative to the norms."""

    @staticmethod
    def of(search: Search, d_in: int) -> Rounding:
        if search is Search.TILES:
            # Rounding moves a coordinate by at most 2^-8 of itself, root mean square 0.4 of that.
            # The tile instruction adds products one at a time, so errors grow with d_in.
            return Rounding(0.0, 0.4 * 2.0**-8, (d_in + 16) * 2.0**-24)
        limit = 2.0**15.5 - 0.5 * (d_in + 1) ** 0.5 - 1
        return Rounding(limit, (d_in / 12) ** 0.5 / limit, 4e-6)


class Shadow(NamedTuple):
    """Copy of the encoder with rounded rows, padded to P groups of latents."""

    panels: Any
    """int32 [P, pairs, GROUP]: two 16-bit coordinates in each number."""
    scales: Float32
    """[P GROUP]: factor from a row's integers to its values."""
    errors: Float32
    """[P GROUP]: the row's factor of the bounds; see `Rounding`."""


@compiled_finite
def round_row(row: Float32, rounding: Rounding, rounded: Any) -> Any:
    """Round a row [d] to int16, or to the bits of bfloat16, in `rounded` [>= d].

    Returns the scale (factor from integers to values), the row's norm |w|, and an upper bound of
    |w - w'|.
    """
    squares, moved, scale = np.float32(0), np.float32(0), np.float32(1)
    if rounding.norm_limit == 0:
        bits = row.view(np.uint32)
        for i in range(row.shape[0]):
            # Round to nearest even. numba widens 32-bit sums to 64 bits, which is twice as slow,
            # hence the casts.
            is_odd = (bits[i] >> np.uint32(16)) & np.uint32(1)
            upper = np.uint32(bits[i] + np.uint32(0x7FFF) + is_odd)
            rounded[i] = np.uint16(upper >> np.uint32(16))
            error = row[i] - np.uint32(upper & np.uint32(0xFFFF0000)).view(np.float32)
            moved += error * error
            squares += row[i] * row[i]
        length = np.sqrt(squares)
    else:
        for i in range(row.shape[0]):
            squares += row[i] * row[i]
        length = np.sqrt(squares)
        # The largest magnitude, taken of the bits as integers: the same order, and it vectorizes.
        bits, largest = row.view(np.int32), np.int32(0)
        for i in range(row.shape[0]):
            largest = max(largest, bits[i] & np.int32(0x7FFFFFFF))
        most = np.int32(largest).view(np.float32)
        scale = np.float32(max(length / rounding.norm_limit, most / 32767.0) * 1.000001)
        inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
        for i in range(row.shape[0]):
            whole = np.rint(row[i] * inverse)
            rounded[i] = np.int16(whole)
            error = row[i] - whole * scale
            moved += error * error
    # The margins cover float32 rounding of the sums and of each difference.
    return scale, length, np.float32(1.001) * np.sqrt(moved) + np.float32(2e-7) * length


@compiled
def round_rows(
    rows: Float32, rounding: Rounding, rounded: Any, scales: Float32, errors: Float32
) -> None:
    """Round tokens [n, d] to int16 [n, >= d] with scales [n]; writes their factors of the bounds to
    errors [n].
    """
    for r in range(rows.shape[0]):
        scale, length, moved = round_row(rows[r], rounding, rounded[r])
        scales[r] = scale
        errors[r] = length + moved * (1 + 1 / rounding.typical)


@compiled
def round_latent(
    j: int, row: Float32, rounding: Rounding, shadow: Shadow, rounded: Any
) -> np.float32:
    """Write latent j's scale and factor of the bounds to the shadow, and its rounded row to its
    place in its group, rounded int16 [GROUP, 2 pairs]; returns the row's norm.
    """
    scale, length, moved = round_row(row, rounding, rounded[j % GROUP])
    shadow.scales[j] = scale
    error = max(moved, rounding.typical * length) + rounding.accumulated * (length + moved)
    shadow.errors[j] = error
    return length


@compiled
def write_panel(rounded: Any, count: int, panel: Any) -> None:
    """Transpose a group's rounded rows to its panel [pairs, GROUP]; the first `count` are latents,
    the others padding.
    """
    rounded[count:] = 0
    pairs = rounded.view(np.int32)
    for i in range(panel.shape[0]):
        for c in range(GROUP):
            panel[i, c] = pairs[c, i]


@compiled
def shadow_group(
    first: int,
    last: int,
    W_enc: Float32,
    norms: Float32,
    rounding: Rounding,
    shadow: Shadow,
    rounded: Any,
) -> None:
    """Write the norms of a group's latents, `first` to `last`, and unless the shadow is empty, the
    group's part of it. `rounded` is work space; see `round_latent`.
    """
    for j in range(first, last):
        if shadow.panels.shape[0]:
            norms[j] = round_latent(j, W_enc[j], rounding, shadow, rounded)
        else:
            norms[j] = norm(W_enc[j])
    if shadow.panels.shape[0]:
        write_panel(rounded, last - first, shadow.panels[first // GROUP])


@compiled
def write_shadow(
    share: Share, W_enc: Float32, norms: Float32, rounding: Rounding, shadow: Shadow
) -> None:
    """Write the shadow and the norms of the share's latents."""
    rounded = np.zeros((GROUP, 2 * shadow.panels.shape[1]), np.int16)
    for part in range(share.first, share.sums.shape[0], share.step):
        end = share.bounds[part + 1]
        for first in range(share.bounds[part], end, GROUP):
            last = min(first + GROUP, end)
            shadow_group(first, last, W_enc, norms, rounding, shadow, rounded)


class Tokens(NamedTuple):
    """A block of n rounded tokens; n is a multiple of `Search.token_multiple`."""

    rounded: Any
    """int16 [n, >= 2 pairs]"""
    scales: Float32
    """[n]"""
    errors: Float32
    """[n]: their factors of the bounds; see `Rounding`."""


def round_tokens(x: Float32, padded: int, search: Search, rounding: Rounding) -> Tokens:
    """Round tokens [n, d_in] and pad them with zeros to `padded` tokens."""
    width = memory.odd_lines(2 * search.pairs(x.shape[1]), np.int16)
    rounded = memory.zeros((padded, width), np.int16)
    tokens = Tokens(rounded, *(np.zeros(padded, np.float32) for _ in range(2)))
    round_rows(x, rounding, *tokens)
    return tokens


class Latents(NamedTuple):
    """What turns dot products into scores; each [P GROUP]."""

    gains: Float32
    """The row's scale times the norm of its decoder row."""
    offsets: Float32
    """b_enc times the norm of the decoder row; -inf for padding."""
    errors: Float32
    """The row's factor of the bounds times the norm of the decoder row."""


@compiled_finite
def integer_scores(
    tokens: Tokens, panels: Any, latents: Latents, sums: Any, scores: Float32, group_bounds: Float32
) -> None:
    """Approximate scores of a block of tokens, and a lower bound of each group's best score.

    Writes scores [n, >= P GROUP] and group_bounds [n, >= P]; sums, int32 [2 n GROUP], is work
    space. The exact score differs from scores[r, j] by at most tokens.errors[r] latents.errors[j].
    """
    n, stride = len(tokens.rounded), tokens.rounded.strides[0]
    num_panels, pairs = panels.shape[:2]
    x_at, panels_at, sums_at = tokens.rounded.ctypes.data, panels.ctypes.data, sums.ctypes.data
    for p in range(num_panels):
        sums[: n * GROUP] = 0
        for start in range(0, pairs, PAIRS_PER_PASS):
            for r in range(0, n, INTEGER_ROWS):
                products.add_integer_products(
                    np.uint64(x_at + r * stride + 4 * start),
                    stride,
                    np.uint64(panels_at + (p * pairs + start) * 4 * GROUP),
                    min(PAIRS_PER_PASS, pairs - start),
                    np.uint64(sums_at + 4 * GROUP * r),
                )
        skip = 4 * GROUP * p
        for r in range(n):
            group_bounds[r, p] = products.score_integer_group(
                np.uint64(sums_at + 4 * GROUP * r),
                np.uint64(latents.gains.ctypes.data + skip),
                np.uint64(latents.offsets.ctypes.data + skip),
                np.uint64(latents.errors.ctypes.data + skip),
                tokens.scales[r],
                tokens.errors[r],
                np.uint64(scores.ctypes.data + r * scores.strides[0] + skip),
            )


@compiled_finite
def tile_scores(
    tokens: Tokens, panels: Any, latents: Latents, sums: Any, scores: Float32, group_bounds: Float32
) -> None:
    """`integer_scores`, but with bfloat16 tiles, two panels at a time."""
    n, stride = len(tokens.rounded), tokens.rounded.strides[0]
    num_panels, pairs = panels.shape[:2]
    panel_bytes = 4 * GROUP * pairs
    products.configure_tiles()
    for p in range(0, num_panels, 2):
        for r in range(0, n, 2 * TILE):
            products.tile_products(
                np.uint64(tokens.rounded.ctypes.data + r * stride),
                stride,
                np.uint64(panels.ctypes.data + p * panel_bytes),
                panel_bytes,
                pairs // TILE,
                np.uint64(sums.ctypes.data + 8 * GROUP * r),
            )
        for half in range(2):
            skip = 4 * GROUP * (p + half)
            for r in range(n):
                group_bounds[r, p + half] = products.score_float_group(
                    np.uint64(sums.ctypes.data + 8 * GROUP * r + 4 * GROUP * half),
                    np.uint64(latents.gains.ctypes.data + skip),
                    np.uint64(latents.offsets.ctypes.data + skip),
                    np.uint64(latents.errors.ctypes.data + skip),
                    tokens.scales[r],
                    tokens.errors[r],
                    np.uint64(scores.ctypes.data + r * scores.strides[0] + skip),
                )
    products.release_tiles()


@compiled_finite
def float_group_bounds(scores: Float32, num_groups: int, group_bounds: Float32) -> None:
    """Each group's best score, for scores [n, >= P GROUP] that are already exact."""
    for r in range(scores.shape[0]):
        for p in range(num_groups):
            best = np.float32(-np.inf)
            for c in range(GROUP):
                best = max(best, scores[r, p * GROUP + c])
            group_bounds[r, p] = best
