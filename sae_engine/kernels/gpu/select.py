"""Selection of each token's k best latents on a GPU, as Triton kernels.

Scores are mapped to integers in the same order (their "images"), so that the k-th largest can be
found exactly, bit by bit. A row of d latents is read twice: first to take the maxima of groups,
whose k-th largest is a lower bound, or floor, that at least k latents reach; then to gather the few
latents that reach it, from which the k best are chosen in registers. Of equal scores, the lowest
latent index wins. Used by `sae.triton_step`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from sae_engine.kernels.gpu.compiled import power_of_2, triton_kernel

MIN_GROUPS = 1024
"""Smallest number of groups whose maxima are taken; as many scores of a row are loaded at once."""

LOWEST = tl.constexpr(-(2**31))
"""Less than the image of any score."""


class Codes(NamedTuple):
    """Sparse codes of n tokens."""

    acts: Float[Tensor, "n k"]
    indices: Int[Tensor, "n k"]
    """int32"""
    kept: Int[Tensor, " n"]
    """int32: number of active latents, which come first in a row; the others have activation 0."""


@triton_kernel
def _image(scores):
    """int32 numbers in the same order as the float32 scores; NaN is mapped like minus infinity."""
    scores = tl.where(scores == scores, scores, float("-inf"))
    bits = scores.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton_kernel
def _kth_largest(images, k):
    """The k-th largest of a block of at least k images, determined bit by bit."""
    found = tl.where(tl.sum((images >= 0).to(tl.int32)) >= k, 0, LOWEST)
    for i in range(31):
        tried = found + (1 << (30 - i))
        found = tl.where(tl.sum((images >= tried).to(tl.int32)) >= k, tried, found)
    return found


@triton_kernel
def _read(dots, bias, norms, row, latents, d):
    """Pre-activations of a row's latents and the images of their scores pre * norm."""
    inside = latents < d
    pre = tl.load(dots + row * d + latents, inside, 0.0).to(tl.float32)
    pre += tl.load(bias + latents, inside, 0.0)
    scores = pre * tl.load(norms + latents, inside, 0.0)
    return pre, tl.where(inside, _image(scores), LOWEST)


@triton_kernel
def _count_in_row(dots, bias, norms, row, d, floor, BLOCK: tl.constexpr):
    """Number of a row's images that are at least `floor`."""
    count = 0
    for first in range(0, d, BLOCK):
        _, images = _read(dots, bias, norms, row, first + tl.arange(0, BLOCK), d)
        count += tl.sum((images >= floor).to(tl.int32))
    return count


@triton_kernel
def _kth_largest_of_row(dots, bias, norms, row, d, k, BLOCK: tl.constexpr):
    """`_kth_largest` of a whole row, which is read 32 times."""
    count = _count_in_row(dots, bias, norms, row, d, 0, BLOCK)
    found = tl.where(count >= k, 0, LOWEST)
    for i in range(31):
        tried = found + (1 << (30 - i))
        count = _count_in_row(dots, bias, norms, row, d, tried, BLOCK)
        found = tl.where(count >= k, tried, found)
    return found


@triton_kernel
def _gather(
    dots, bias, norms, pre_found, found, row, d, floor, ties_wanted,
    LIMIT_TIES: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a row's latents whose images reach `floor`, ascending, and their pre-activations; at
    most CAPACITY of them. Returns how many reach it.

    With LIMIT_TIES, only the first `ties_wanted` of those equal to the floor.
    """
    count = 0
    ties = 0
    for first in range(0, d, BLOCK):
        latents = first + tl.arange(0, BLOCK)
        pre, images = _read(dots, bias, norms, row, latents, d)
        reaches = images >= floor
        if LIMIT_TIES:
            is_tie = (images == floor).to(tl.int32)
            reaches = (images > floor) | (
                (is_tie > 0) & (ties + tl.cumsum(is_tie, 0) <= ties_wanted)
            )
            ties += tl.sum(is_tie)
        ones = reaches.to(tl.int32)
        place = count + tl.cumsum(ones, 0) - 1
        fits = reaches & (place < CAPACITY)
        tl.store(found + row * CAPACITY + place, latents, fits)
        tl.store(pre_found + row * CAPACITY + place, pre, fits)
        count += tl.sum(ones)
    return count


@triton_kernel
def find_candidates(
    dots, bias, norms, pre_found, found, counts, d, k,
    CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For one row of dots [n, d] per program: at least k candidates, among them its k best latents.

    Writes their indices, ascending, to found [n, CAPACITY], their pre-activations dots + bias to
    pre_found [n, CAPACITY], and their number to counts [n]. CAPACITY is at least min(2k, d).
    """
    row = tl.program_id(0).to(tl.int64)
    best = tl.full([BLOCK], LOWEST, tl.int32)
    for first in range(0, d, BLOCK):
        _, images = _read(dots, bias, norms, row, first + tl.arange(0, BLOCK), d)
        best = tl.maximum(best, images)
    floor = _kth_largest(best, k)
    count = _gather(
        dots, bias, norms, pre_found, found, row, d, floor, 0, False, CAPACITY, BLOCK
    )  # fmt: skip
    if count > CAPACITY:  # many ties, or many of the best latents in few groups
        tl.debug_barrier()  # all threads have written before it is overwritten
        floor = _kth_largest_of_row(dots, bias, norms, row, d, k, BLOCK)
        # Fewer than k above it and at most k equal to it: these fit into CAPACITY.
        count = _gather(
            dots, bias, norms, pre_found, found, row, d, floor, k, True, CAPACITY, BLOCK
        )  # fmt: skip
    tl.store(counts + row, count)


@triton_kernel
def keep_best(pre_found, found, counts, norms, acts, indices, kept, stride, k, WIDTH: tl.constexpr):
    """For one row per program: of its candidates, the k with the largest scores.

    The candidates are the first counts[row] entries of found and pre_found [n, stride], ascending,
    at least k and at most WIDTH. Writes relu(pre) and the latents to acts and indices [n, k],
    active ones first and otherwise in the candidates' order, and the number of active ones to kept
    [n].
    """
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, WIDTH)
    count = tl.load(counts + row)
    inside = lanes < count
    latents = tl.load(found + row * stride + lanes, inside, 0)
    pre = tl.load(pre_found + row * stride + lanes, inside, 0.0)
    images = tl.where(inside, _image(pre * tl.load(norms + latents, inside, 0.0)), LOWEST)
    floor = LOWEST
    if count > k:
        floor = _kth_largest(images, k)
    above = tl.sum((images > floor).to(tl.int32))
    is_tie = (images == floor).to(tl.int32)
    chosen = (images > floor) | ((is_tie > 0) & (tl.cumsum(is_tie, 0) <= k - above))
    active = (chosen & (pre > 0)).to(tl.int32)
    idle = chosen.to(tl.int32) - active
    num_active = tl.sum(active)
    place = tl.where(active > 0, tl.cumsum(active, 0), num_active + tl.cumsum(idle, 0)) - 1
    tl.store(acts + row * k + place, tl.where(active > 0, pre, 0.0), chosen)
    tl.store(indices + row * k + place, latents, chosen)
    tl.store(kept + row, num_active)


def num_warps(width: int) -> int:
    """Warps per program, such that a thread's share of a block fits into its registers."""
    return 4 if width <= MIN_GROUPS else 8


def select(
    dots: Float[Tensor, "n d"],
    bias: Float[Tensor, " d"],
    norms: Float[Tensor, " d"],
    k: int,
    *,
    min_groups: int = MIN_GROUPS,
) -> Codes:
    """The k largest of (dots + bias) * norms in each row, exactly as `reference.select_topk`.

    `dots` is float32 or bfloat16; all tensors are contiguous.
    """
    n, d = dots.shape
    capacity = power_of_2(min(d, max(min_groups, 2 * k)))
    pre_found = torch.empty(n, capacity, dtype=torch.float32, device=dots.device)
    found = torch.empty(n, capacity, dtype=torch.int32, device=dots.device)
    counts = torch.empty(n, dtype=torch.int32, device=dots.device)
    find_candidates[(n,)](
        dots, bias, norms, pre_found, found, counts, d, k, CAPACITY=capacity, BLOCK=capacity,
        num_warps=num_warps(capacity),
    )  # fmt: skip
    return best_of(pre_found, found, counts, norms, k)


def best_of(
    pre_found: Float[Tensor, "n c"],
    found: Int[Tensor, "n c"],
    counts: Int[Tensor, " n"],
    norms: Float[Tensor, " d"],
    k: int,
) -> Codes:
    """Codes of the best k of each row's first counts[row] >= k candidates.

    `found` and `counts` are int32; all tensors are contiguous.
    """
    n, stride = found.shape
    width = power_of_2(stride)
    acts = torch.empty(n, k, dtype=torch.float32, device=found.device)
    indices = torch.empty(n, k, dtype=torch.int32, device=found.device)
    kept = torch.empty(n, dtype=torch.int32, device=found.device)
    keep_best[(n,)](
        pre_found, found, counts, norms, acts, indices, kept, stride, k,
        WIDTH=width, num_warps=num_warps(width),
    )  # fmt: skip
    return Codes(acts, indices, kept)
