"""From codes in corpus order to the sides sorted by latent and by token.

Every sort is one in-place `np.sort` of packed 64-bit keys whose low bits carry what is to be kept,
over a range of latents or tokens small enough for memory: no permutation arrays, no loop per
activation or latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_engine.errors import UserError
from sae_engine.feature_index.format import ArrayWriter, load_array, save_array

MAX_SORT_ENTRIES = 2**25
"""Keys that are sorted at once (8 bytes each)."""
CHUNK_ENTRIES = 2**22
"""Entries that are unpacked or scanned at once."""
ACT_BITS = 16

Keys = NDArray[np.uint64]
Check = Callable[[], None]


def group_bounds(counts: NDArray[Any]) -> NDArray[np.int64]:
    """[n] sizes of groups -> [n + 1] where each begins, and the total."""
    bounds = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds


def invert_by_latent(
    folder: Path,
    fired: NDArray[np.int64],
    *,
    check_stop: Check,
    max_entries: int = MAX_SORT_ENTRIES,
) -> None:
    """Write `latent_starts`, `latent_positions` and `latent_acts`.

    `fired` [d_sae] counts each latent's active entries.
    """
    indices, acts = load_array(folder, "indices"), load_array(folder, "acts")
    k = indices.shape[1]
    indices, act_bits = indices.reshape(-1), acts.reshape(-1).view(np.uint16)
    starts = group_bounds(fired)
    save_array(folder, "latent_starts", starts)
    position_bits = _bits(len(acts))
    _require_bits(_bits(len(fired)) + ACT_BITS + position_bits, "latents times tokens")
    with (
        ArrayWriter(folder, "latent_positions", np.uint32) as positions_out,
        ArrayWriter(folder, "latent_acts", np.float16) as acts_out,
    ):
        for low, high in _ranges(starts, max_entries):
            keys = np.empty(starts[high] - starts[low], np.uint64)
            filled = 0
            for a in range(0, len(indices), CHUNK_ENTRIES):
                check_stop()
                latents, bits = indices[a : a + CHUNK_ENTRIES], act_bits[a : a + CHUNK_ENTRIES]
                chosen = np.flatnonzero((bits > 0) & (latents >= low) & (latents < high))
                part = latents[chosen].astype(np.uint64) - np.uint64(low)
                part = (part << ACT_BITS) | (0xFFFF - bits[chosen]).astype(np.uint64)
                part = (part << position_bits) | ((chosen + a) // k).astype(np.uint64)
                keys[filled : filled + len(part)] = part
                filled += len(part)
            assert filled == len(keys)
            keys.sort()
            for part in _chunks(keys, check_stop):
                positions_out.append(part & _mask(position_bits))
                bits = 0xFFFF - ((part >> position_bits) & _mask(ACT_BITS)).astype(np.uint16)
                acts_out.append(bits.view(np.float16))


def invert_by_token(
    folder: Path, vocab_size: int, *, check_stop: Check, max_entries: int = MAX_SORT_ENTRIES
) -> None:
    """Write `token_starts`, `token_positions` and the exact table of (token, latent), `pair_*`."""
    token_ids = load_array(folder, "token_ids")
    starts = group_bounds(np.bincount(token_ids, minlength=vocab_size))
    keys = (token_ids.astype(np.uint64) << 32) | np.arange(len(token_ids), dtype=np.uint64)
    keys.sort()
    check_stop()
    positions = (keys & _mask(32)).astype(np.uint32)
    del keys
    save_array(folder, "token_starts", starts)
    save_array(folder, "token_positions", positions)
    _write_pairs(folder, starts, positions, check_stop, max_entries)


def _write_pairs(
    folder: Path,
    starts: NDArray[np.int64],
    positions: NDArray[np.uint32],
    check_stop: Check,
    max_entries: int,
) -> None:
    indices, acts = load_array(folder, "indices"), load_array(folder, "acts")
    k, vocab_size = indices.shape[1], len(starts) - 1
    # A key is token, latent and the bits of the activation.
    latent_bits = 48 - _bits(vocab_size)
    _require_bits(_bits(int(indices.max()) + 1) + 64 - latent_bits, "latents times vocabulary")
    num_pairs = np.zeros(vocab_size, np.int64)
    with (
        ArrayWriter(folder, "pair_latents", np.uint32) as latents_out,
        ArrayWriter(folder, "pair_counts", np.uint32) as counts_out,
        ArrayWriter(folder, "pair_sums", np.float32) as sums_out,
        ArrayWriter(folder, "pair_maxes", np.float16) as maxes_out,
    ):
        for low, high in _ranges(starts, max(1, max_entries // k)):
            where = positions[starts[low] : starts[high]]
            tokens = np.repeat(
                np.arange(low, high, dtype=np.uint64), np.diff(starts[low : high + 1])
            )
            parts: list[NDArray[Any]] = [np.empty(0, np.uint64)]
            for a in range(0, len(where), max(1, CHUNK_ENTRIES // k)):
                check_stop()
                part = slice(a, a + max(1, CHUNK_ENTRIES // k))
                bits = acts[where[part]].view(np.uint16)
                key = (tokens[part, None] << latent_bits) | indices[where[part]].astype(np.uint64)
                parts.append(((key << ACT_BITS) | bits)[bits > 0])
            keys = np.concatenate(parts)
            del parts
            if not len(keys):
                continue
            keys.sort()
            check_stop()
            pairs = keys >> ACT_BITS
            firsts = np.concatenate(([0], np.flatnonzero(pairs[1:] != pairs[:-1]) + 1))
            values = (keys & _mask(ACT_BITS)).astype(np.uint16).view(np.float16)
            pairs = pairs[firsts]
            latents_out.append(pairs & _mask(latent_bits))
            counts_out.append(np.diff(np.append(firsts, len(keys))))
            sums_out.append(np.add.reduceat(values.astype(np.float64), firsts))
            # Activations ascend within a pair.
            maxes_out.append(values[np.append(firsts[1:], len(keys)) - 1])
            num_pairs += np.bincount((pairs >> latent_bits).astype(np.int64), minlength=vocab_size)
    save_array(folder, "pair_starts", group_bounds(num_pairs))


def rank_tokens_by_latent(
    folder: Path, *, check_stop: Check, max_entries: int = MAX_SORT_ENTRIES
) -> None:
    """Write `latent_token_starts` and `latent_tokens` from the exact table."""
    pair_starts, pair_latents = (
        load_array(folder, "pair_starts"),
        load_array(folder, "pair_latents"),
    )
    pair_counts = load_array(folder, "pair_counts")
    token_counts = np.diff(load_array(folder, "token_starts"))
    fired = np.diff(load_array(folder, "latent_starts"))
    starts = group_bounds(np.bincount(pair_latents, minlength=len(fired)))
    token_bits = _bits(len(token_counts))
    # What is left of the key ranks F1 on an integer scale: at least 2**22 steps, 2**30 in practice.
    f1_bits = min(30, 64 - token_bits - _bits(len(fired)))
    _require_bits(_bits(len(fired)) + token_bits + 22, "latents times vocabulary")
    save_array(folder, "latent_token_starts", starts)
    with ArrayWriter(folder, "latent_tokens", np.uint32) as tokens_out:
        for low, high in _ranges(starts, max_entries):
            parts: list[NDArray[Any]] = [np.empty(0, np.uint64)]
            for first, last in _ranges(pair_starts, CHUNK_ENTRIES):
                check_stop()
                part = slice(pair_starts[first], pair_starts[last])
                latents, counts = pair_latents[part], pair_counts[part]
                tokens = np.repeat(np.arange(first, last), np.diff(pair_starts[first : last + 1]))
                chosen = (latents >= low) & (latents < high)
                latents, counts, tokens = latents[chosen], counts[chosen], tokens[chosen]
                f1 = 2.0 * counts / (token_counts[tokens] + fired[latents])
                rank = ((1.0 - f1) * ((1 << f1_bits) - 1)).astype(np.uint64)
                key = ((latents.astype(np.uint64) - np.uint64(low)) << f1_bits) | rank
                parts.append((key << token_bits) | tokens.astype(np.uint64))
            keys = np.concatenate(parts)
            keys.sort()
            for part in _chunks(keys, check_stop):
                tokens_out.append(part & _mask(token_bits))


def _ranges(starts: NDArray[np.int64], max_entries: int) -> Iterator[tuple[int, int]]:
    """Cut groups into consecutive ranges of at most `max_entries` entries, or one larger group."""
    low, num_groups = 0, len(starts) - 1
    while low < num_groups:
        high = int(np.searchsorted(starts, starts[low] + max_entries, side="right")) - 1
        high = min(max(high, low + 1), num_groups)
        yield low, high
        low = high


def _chunks(keys: Keys, check_stop: Check) -> Iterator[Keys]:
    for a in range(0, len(keys), CHUNK_ENTRIES):
        check_stop()
        yield keys[a : a + CHUNK_ENTRIES]


def _bits(count: int) -> int:
    """Bits that hold 0 … count - 1."""
    return max(1, (count - 1).bit_length())


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _require_bits(bits: int, product: str) -> None:
    if bits > 64:
        raise UserError(
            f"The feature index cannot hold so many {product}; lower index.tokens or sae.d_sae."
        )
