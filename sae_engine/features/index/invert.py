"""Groups the codes of a corpus by latent and by token.

Codes are read once by latent and once by token, whatever their number and the memory; the kernels
are in `kernels.grouping`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.index.format import ArrayWriter, load_array, save_array
from sae_engine.features.index.parts import Dealt, Parts, bits_below, cut, grouped, ranges
from sae_engine.interrupt import CheckStop
from sae_engine.kernels import grouping
from sae_engine.kernels.compiled import in_parallel, num_threads
from sae_engine.sizes import ENTRIES_PER_SORT

CHUNK_ENTRIES = 2**22
"""Entries scanned between two checks for a stop."""
ACT_BITS, F1_BITS = 16, 32


def group_bounds(counts: NDArray[Any]) -> NDArray[np.int64]:
    """[n] sizes of groups -> [n + 1] start of each group, and the total."""
    bounds = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=bounds[1:])
    return bounds


def invert_by_latent(
    folder: Path,
    fired: NDArray[np.int64],
    *,
    check_stop: CheckStop,
    max_entries: int = ENTRIES_PER_SORT,
) -> None:
    """Write `latent_starts`, `latent_positions` and `latent_acts`.

    `fired` [d_sae] is the number of active entries of each latent.
    """
    indices, act_bits = _codes(folder)
    starts = group_bounds(fired)
    save_array(folder, "latent_starts", starts)
    rows = max(1, CHUNK_ENTRIES // indices.shape[1])

    def deal(parts: Parts) -> Iterator[Dealt]:
        for a in range(0, len(indices), rows):
            check_stop()
            here = indices[a : a + rows]
            dealt = parts.dealt(here.size)
            grouping.deal_codes(
                here, act_bits[a : a + rows], a, parts.of, parts.first, parts.value_bits,
                dealt.bounds, dealt.keys,
            )  # fmt: skip
            yield dealt

    with (
        ArrayWriter(folder, "latent_positions", np.uint32) as positions_out,
        ArrayWriter(folder, "latent_acts", np.float16) as acts_out,
    ):
        bits = (ACT_BITS, bits_below(len(indices)))
        for keys in grouped(folder, starts, deal, bits, check_stop, max_entries):
            positions_out.append(keys & np.uint64(0xFFFFFFFF))
            acts_out.append((0xFFFF - (keys >> 32)).astype(np.uint16).view(np.float16))


def invert_by_token(
    folder: Path, vocab_size: int, *, check_stop: CheckStop, max_entries: int = ENTRIES_PER_SORT
) -> None:
    """Write `token_starts`, `token_positions` and the (token, latent) table `pair_*`."""
    token_ids = load_array(folder, "token_ids")
    starts = group_bounds(_counts(token_ids, vocab_size))
    positions = np.empty(len(token_ids), np.uint32)
    check_stop()
    grouping.deal_positions(token_ids, starts.copy(), positions)
    save_array(folder, "token_starts", starts)
    save_array(folder, "token_positions", positions)
    _write_pairs(folder, starts, positions, check_stop, max_entries)


def _write_pairs(
    folder: Path,
    starts: NDArray[np.int64],
    positions: NDArray[np.uint32],
    check_stop: CheckStop,
    max_entries: int,
) -> None:
    indices, act_bits = _codes(folder)
    half = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
    d_sae = len(load_array(folder, "latent_starts")) - 1
    # A token has at most as many pairs as entries, and at most one per latent.
    most = group_bounds(np.minimum(np.diff(starts) * indices.shape[1], d_sae))
    num_pairs = np.zeros(len(starts) - 1, np.int64)
    with (
        ArrayWriter(folder, "pair_latents", np.uint32) as latents_out,
        ArrayWriter(folder, "pair_counts", np.uint32) as counts_out,
        ArrayWriter(folder, "pair_sums", np.float32) as sums_out,
        ArrayWriter(folder, "pair_maxes", np.float16) as maxes_out,
    ):
        threads, chunk_positions = num_threads(), max(1, CHUNK_ENTRIES // indices.shape[1])
        for low, high in ranges(most, max_entries // 2):
            # Split the work by entries, not by pairs, which understate frequent tokens.
            cuts = cut(starts, low, high, threads)
            tables = [_table(int(most[b] - most[a])) for a, b in cuts]
            written = [0] * len(cuts)

            def part(number: int, thread: int, cuts=cuts, tables=tables, written=written) -> None:
                check = _check_of(thread, check_stop)
                first_token, last_token = cuts[number]
                for first, last in ranges(starts[: last_token + 1], chunk_positions, first_token):
                    check()
                    rest = [column[written[number] :] for column in tables[number]]
                    written[number] += grouping.count_pairs(
                        first, last, starts, positions, indices, act_bits, half, d_sae, *rest,
                        num_pairs,
                    )  # fmt: skip

            in_parallel(part, len(cuts))
            for (latents, counts, sums, maxes), length in zip(tables, written, strict=True):
                latents_out.append(latents[:length])
                counts_out.append(counts[:length])
                sums_out.append(sums[:length])
                maxes_out.append(maxes[:length].view(np.float16))
    save_array(folder, "pair_starts", group_bounds(num_pairs))


def rank_tokens_by_latent(
    folder: Path, *, check_stop: CheckStop, max_entries: int = ENTRIES_PER_SORT
) -> None:
    """Write `latent_token_starts` and `latent_tokens` from the (token, latent) table."""
    pair_starts, pair_latents = (
        load_array(folder, "pair_starts"),
        load_array(folder, "pair_latents"),
    )
    pair_counts = load_array(folder, "pair_counts")
    token_counts = np.diff(load_array(folder, "token_starts"))
    fired = np.diff(load_array(folder, "latent_starts"))
    starts = group_bounds(_counts(pair_latents, len(fired)))
    save_array(folder, "latent_token_starts", starts)

    def deal(parts: Parts) -> Iterator[Dealt]:
        for first, last in ranges(pair_starts, CHUNK_ENTRIES):
            check_stop()
            dealt = parts.dealt(int(pair_starts[last] - pair_starts[first]))
            grouping.deal_pairs(
                first, last, pair_starts, pair_latents, pair_counts, token_counts, fired, parts.of,
                parts.first, parts.value_bits, dealt.bounds, dealt.keys,
            )  # fmt: skip
            yield dealt

    with ArrayWriter(folder, "latent_tokens", np.uint32) as tokens_out:
        bits = (F1_BITS, bits_below(len(token_counts)))
        for keys in grouped(folder, starts, deal, bits, check_stop, max_entries):
            tokens_out.append(keys & np.uint64(0xFFFFFFFF))


def _codes(folder: Path) -> tuple[NDArray[Any], NDArray[np.uint16]]:
    """The latents [N, k], and the bits of their activations."""
    return load_array(folder, "indices"), load_array(folder, "acts").view(np.uint16)


def _counts(values: NDArray[Any], size: int) -> NDArray[np.int64]:
    """How often each number below `size` occurs. In pieces, because `bincount` copies its input."""
    counts = np.zeros(size, np.int64)
    for a in range(0, len(values), CHUNK_ENTRIES):
        counts += np.bincount(values[a : a + CHUNK_ENTRIES], minlength=size)
    return counts


def _check_of(thread: int, check_stop: CheckStop) -> CheckStop:
    """Only the calling thread checks for a stop."""
    return check_stop if thread == 0 else lambda: None


def _table(length: int) -> tuple[NDArray[Any], ...]:
    return (
        np.empty(length, np.uint32),
        np.empty(length, np.uint32),
        np.empty(length, np.float32),
        np.empty(length, np.uint16),
    )
