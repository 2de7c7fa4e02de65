"""Bringing the entries of a feature index from corpus order into groups, by latent and by token.

Linear time throughout: entries are counted, dealt out to where their group begins, and sorted
inside their group by radix. Parts of one kernel touch different groups, so that threads can share
the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_engine.kernels.compiled import compiled

Int64 = NDArray[np.int64]
Keys = NDArray[np.uint64]

LOW_BITS = 32
"""Bits of a key that hold what is sorted; those above hold its rank."""
DIGITS = 256


@compiled
def deal_codes(
    indices: Any, act_bits: Any, first_position: int, low: int, high: int, free: Int64, keys: Keys
) -> None:
    """Deal a stretch of codes [n, k] out to the latents `low` to `high`.

    A key is 0xFFFF minus the activation's bits, then the position; latent j's next one goes to
    keys[free[j - low]]. Zeros are not active.
    """
    for r in range(indices.shape[0]):
        for i in range(indices.shape[1]):
            bits, j = act_bits[r, i], np.int64(indices[r, i])
            if bits > 0 and low <= j < high:
                rank = np.uint64(0xFFFF - bits)
                keys[free[j - low]] = (rank << np.uint64(LOW_BITS)) | np.uint64(first_position + r)
                free[j - low] += 1


@compiled
def deal_pairs(
    first_token: int,
    last_token: int,
    pair_starts: Int64,
    pair_latents: Any,
    pair_counts: Any,
    token_counts: Int64,
    fired: Int64,
    low: int,
    high: int,
    free: Int64,
    keys: Keys,
) -> None:
    """Deal the tokens `first_token` to `last_token` out to the latents `low` to `high` on which
    they fire: a key ranks the token's F1 for the latent, best first, then holds the token.
    """
    scale = float(2**32 - 1)
    for t in range(first_token, last_token):
        for p in range(pair_starts[t], pair_starts[t + 1]):
            j = np.int64(pair_latents[p])
            if low <= j < high:
                f1 = 2.0 * pair_counts[p] / (token_counts[t] + fired[j])
                rank = np.uint64((1.0 - f1) * scale)
                keys[free[j - low]] = (rank << np.uint64(LOW_BITS)) | np.uint64(t)
                free[j - low] += 1


@compiled
def deal_positions(token_ids: Any, free: Int64, positions: Any) -> None:
    """Deal all positions out to their tokens, ascending."""
    for position in range(token_ids.shape[0]):
        token = token_ids[position]
        positions[free[token]] = position
        free[token] += 1


@compiled
def radix_sort(keys: Any, scratch: Any, first_bit: int, num_bits: int) -> None:
    """Sort by the given bits, stable. `scratch` is at least as long as `keys`."""
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
    """Sort every group of keys by rank. Inside a rank the keys must ascend already.

    Group g is keys[bounds[g]:bounds[g + 1]]; `scratch` is as long as the largest.
    """
    for g in range(bounds.shape[0] - 1):
        group = keys[bounds[g] : bounds[g + 1]]
        if group.shape[0] <= 48:
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
    """The table of (token, latent) for the tokens `first_token` to `last_token`.

    indices and act_bits [N, k] are the codes; half [2^16] maps bits to float16's value. Writes
    latents, counts, sums of activations and the bits of the largest, by token and then latent, from
    the beginning of the outputs, and to num_pairs [V] how many each token has; returns how many all
    have.
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
        if found <= 48:
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
