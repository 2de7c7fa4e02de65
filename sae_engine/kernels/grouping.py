"""Grouping the entries of a feature index, which are in corpus order, by latent and by token.

Linear time throughout: counting sorts deal entries to parts that fit into memory (the `deal_*`
kernels) and move those of a part into their groups, and a radix sort orders each group. Threads
call a kernel for disjoint parts, so they share no writes. Called by `features.index`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_engine.kernels.compiled import compiled

Int64 = NDArray[np.int64]
Keys = NDArray[np.uint64]

LOW_BITS = 32
"""The low bits of a grouped key hold a position or token; the bits above hold its rank."""
DIGITS = 256
"""Values of a radix sort's digit: 8 bits a pass."""
SHORT = 48
"""Up to this length, an insertion sort is faster than a radix sort."""


@compiled
def deal_codes(
    indices: Any,
    act_bits: Any,
    first_position: int,
    part_of: Any,
    first_of: Int64,
    value_bits: int,
    bounds: Int64,
    keys: Keys,
) -> None:
    """Write the keys of the active entries of codes [n, k] to `keys`, by parts of the latents.

    `part_of` [d_sae] is each latent's part, `first_of` each part's first latent; part p's keys are
    written to keys[bounds[p]:bounds[p + 1]], in order. `act_bits` are float16 activations as
    integers. A key is, from the high bits down, the latent's number in its part, the rank 0xFFFF -
    act_bits in 16 bits, and the position in `value_bits`.
    """
    bounds[:] = 0
    for r in range(indices.shape[0]):
        for i in range(indices.shape[1]):
            if act_bits[r, i] > 0:
                bounds[part_of[indices[r, i]] + 1] += 1
    for p in range(bounds.shape[0] - 1):
        bounds[p + 1] += bounds[p]
    free = bounds[:-1].copy()
    for r in range(indices.shape[0]):
        for i in range(indices.shape[1]):
            bits, j = act_bits[r, i], np.int64(indices[r, i])
            if bits > 0:
                p = part_of[j]
                key = (np.uint64(j - first_of[p]) << np.uint64(16)) | np.uint64(0xFFFF - bits)
                keys[free[p]] = (key << np.uint64(value_bits)) | np.uint64(first_position + r)
                free[p] += 1


@compiled
def deal_pairs(
    first_token: int,
    last_token: int,
    pair_starts: Int64,
    pair_latents: Any,
    pair_counts: Any,
    token_counts: Int64,
    fired: Int64,
    part_of: Any,
    first_of: Int64,
    value_bits: int,
    bounds: Int64,
    keys: Keys,
) -> None:
    """The same for the latents that fire on the tokens in [first_token, last_token): the value is
    the token, and the rank, in 32 bits, orders tokens by their F1 for the latent, descending.
    """
    scale = float(2**32 - 1)
    bounds[:] = 0
    for p in range(pair_starts[first_token], pair_starts[last_token]):
        bounds[part_of[pair_latents[p]] + 1] += 1
    for part in range(bounds.shape[0] - 1):
        bounds[part + 1] += bounds[part]
    free = bounds[:-1].copy()
    for t in range(first_token, last_token):
        for p in range(pair_starts[t], pair_starts[t + 1]):
            j = np.int64(pair_latents[p])
            part = part_of[j]
            f1 = 2.0 * pair_counts[p] / (token_counts[t] + fired[j])
            rank = np.uint64((1.0 - f1) * scale)
            key = (np.uint64(j - first_of[part]) << np.uint64(32)) | rank
            keys[free[part]] = (key << np.uint64(value_bits)) | np.uint64(t)
            free[part] += 1


@compiled
def group_keys(keys: Keys, rank_bits: int, value_bits: int, free: Int64, grouped: Keys) -> None:
    """Move the keys of a part to the groups of its latents, in order, as `sort_groups` reads them:
    the rank above, and the value in the low bits. Latent j's next key is written to
    grouped[free[j]], and `free` advances.
    """
    values = (np.uint64(1) << np.uint64(value_bits)) - np.uint64(1)
    ranks = (np.uint64(1) << np.uint64(rank_bits)) - np.uint64(1)
    for i in range(keys.shape[0]):
        key = keys[i] >> np.uint64(value_bits)
        j = np.int64(key >> np.uint64(rank_bits))
        grouped[free[j]] = ((key & ranks) << np.uint64(LOW_BITS)) | (keys[i] & values)
        free[j] += 1


@compiled
def deal_positions(token_ids: Any, free: Int64, positions: Any) -> None:
    """Write all positions to the groups of their tokens, ascending; token t's next position is
    written to positions[free[t]].
    """
    for position in range(token_ids.shape[0]):
        token = token_ids[position]
        positions[free[token]] = position
        free[token] += 1


@compiled
def radix_sort(keys: Any, scratch: Any, first_bit: int, num_bits: int) -> None:
    """Sort keys in place by `num_bits` bits from `first_bit` on, stable. `scratch` is at least as
    long as `keys`.
    """
    n = keys.shape[0]
    counts = np.empty(DIGITS + 1, np.int64)
    here, there = keys, scratch[:n]
    passes = (num_bits + 7) // 8
    for digit in range(passes):
        shift = np.uint64(first_bit + 8 * digit)
        counts[:] = 0
        for i in range(n):
            counts[((np.uint64(here[i]) >> shift) & np.uint64(0xFF)) + np.uint64(1)] += 1
        for d in range(DIGITS):
            counts[d + 1] += counts[d]
        for i in range(n):
            d = (np.uint64(here[i]) >> shift) & np.uint64(0xFF)
            there[counts[d]] = here[i]
            counts[d] += 1
        here, there = there, here
    if passes % 2:
        keys[:] = scratch[:n]


@compiled
def insertion_sort(keys: Any) -> None:
    for i in range(1, keys.shape[0]):
        key = keys[i]
        j = i - 1
        while j >= 0 and keys[j] > key:
            keys[j + 1] = keys[j]
            j -= 1
        keys[j + 1] = key


@compiled
def sort_groups(keys: Keys, bounds: Int64, rank_bits: int, scratch: Keys) -> None:
    """Sort the keys of every group by rank; keys of equal rank must already be ascending.

    Group g is keys[bounds[g]:bounds[g + 1]]; `scratch` is at least as long as the largest group.
    """
    for g in range(bounds.shape[0] - 1):
        group = keys[bounds[g] : bounds[g + 1]]
        if group.shape[0] <= SHORT:
            insertion_sort(group)
        else:
            radix_sort(group, scratch, LOW_BITS, rank_bits)


@compiled
def count_pairs(
    first_token: int,
    last_token: int,
    token_starts: Int64,
    token_positions: Any,
    indices: Any,
    act_bits: Any,
    half: Any,
    d_sae: int,
    latents: Any,
    counts: Any,
    sums: Any,
    maxes: Any,
    num_pairs: Int64,
) -> int:
    """The table of (token, latent) pairs of the tokens in [first_token, last_token).

    indices and act_bits [N, k] are the codes; half [2^16] maps bits to float16 values. For each
    pair, by token and then latent, writes the latent, the number of positions, the sum of the
    activations and the bits of the largest to the start of the outputs; and the number of pairs of
    each token to num_pairs [V]. Returns the total number of pairs.
    """
    count = np.zeros(d_sae, np.int64)
    total = np.zeros(d_sae, np.float64)
    most = np.zeros(d_sae, np.uint16)
    touched, scratch = np.empty(d_sae, np.uint32), np.empty(d_sae, np.uint32)
    bits = 1
    while (1 << bits) < d_sae:
        bits += 1
    written = 0
    for t in range(first_token, last_token):
        found = 0
        for q in range(token_starts[t], token_starts[t + 1]):
            position = token_positions[q]
            for i in range(indices.shape[1]):
                act = act_bits[position, i]
                if act > 0:
                    j = indices[position, i]
                    if count[j] == 0:
                        touched[found] = j
                        found += 1
                    count[j] += 1
                    total[j] += half[act]
                    most[j] = max(most[j], act)
        here = touched[:found]
        if found <= SHORT:
            insertion_sort(here)
        else:
            radix_sort(here, scratch, 0, bits)
        for j in here:
            latents[written] = j
            counts[written] = count[j]
            sums[written] = total[j]
            maxes[written] = most[j]
            count[j] = 0
            total[j] = 0
            most[j] = 0
            written += 1
        num_pairs[t] = found
    return written
