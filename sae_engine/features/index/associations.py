"""How strongly latents are associated with a token, a group of tokens or a phrase.

Over the N positions of an index, with c(t) the positions that hold the text, c(f) those on which
latent f is active, and c(t, f) those with both: recall = c(t, f) / c(t),
precision = c(t, f) / c(f), F1 is their harmonic mean, lift = precision / (c(t) / N).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.index.format import IndexArrays
from sae_engine.schema.lookup import LookupRank

CHUNK_POSITIONS = 2**13
"""Positions whose codes are in memory at once, few enough for the processor's cache."""


class Associations(NamedTuple):
    """Latents that are active on a set of positions, one entry per latent, ascending."""

    latents: NDArray[np.int64]
    counts: NDArray[np.int64]
    """c(t, f) >= 1"""
    sums: NDArray[np.float64]
    maxes: NDArray[np.float64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    f1: NDArray[np.float64]
    lift: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        arrays: IndexArrays,
        latents: NDArray[Any],
        counts: NDArray[Any],
        sums: NDArray[Any],
        maxes: NDArray[Any],
        *,
        group_count: int | NDArray[np.int64],
    ) -> Self:
        """Compute the measures from c(t, f) = `counts` and c(t) = `group_count`; `sums` and `maxes`
        are as stored.
        """
        latents, counts = latents.astype(np.int64), counts.astype(np.int64)
        fired = arrays.fired[latents]
        precision = counts / fired
        return cls(
            latents=latents,
            counts=counts,
            sums=sums.astype(np.float64) * arrays.act_scale,
            maxes=maxes.astype(np.float64) * arrays.act_scale,
            recall=counts / group_count,
            precision=precision,
            f1=2.0 * counts / (group_count + fired),
            lift=precision * arrays.num_tokens / group_count,
        )

    @classmethod
    def of_pairs(cls, arrays: IndexArrays, token: int, pairs: slice) -> Self:
        """Associations of one token, from its entries `pairs` in the (token, latent) table."""
        return cls.of(
            arrays,
            arrays.pair_latents[pairs],
            arrays.pair_counts[pairs],
            arrays.pair_sums[pairs],
            arrays.pair_maxes[pairs],
            group_count=int(arrays.token_counts[token]),
        )

    @classmethod
    def of_tokens(cls, arrays: IndexArrays, ids: Sequence[int]) -> Self:
        """Associations over all positions that hold one of the tokens."""
        if len(ids) == 1:
            start, end = arrays.pair_starts[ids[0] : ids[0] + 2]
            return cls.of_pairs(arrays, ids[0], slice(start, end))
        group = np.array(ids, np.int64)
        pairs = concatenated_ranges(arrays.pair_starts, group)
        return cls.of(
            arrays,
            *_sum_by_latent(
                arrays.pair_latents[pairs],
                arrays.pair_counts[pairs],
                arrays.pair_sums[pairs],
                arrays.pair_maxes[pairs],
                d_sae=arrays.d_sae,
            ),
            group_count=int(arrays.token_counts[group].sum()),
        )

    @classmethod
    def of_positions(cls, arrays: IndexArrays, positions: NDArray[np.int64]) -> Self:
        """Associations over a set of distinct positions, from the codes at these positions."""
        counts = np.zeros(arrays.d_sae, np.int64)
        sums, maxes = np.zeros(arrays.d_sae), np.zeros(arrays.d_sae)
        for first in range(0, len(positions), CHUNK_POSITIONS):
            some = positions[first : first + CHUNK_POSITIONS]
            acts = arrays.acts[some]
            active = acts.view(np.uint16) > 0  # many times faster than comparing halves
            values = acts[active].astype(np.float64)
            latents = arrays.indices[some][active].astype(np.intp)
            counts += np.bincount(latents, minlength=arrays.d_sae)
            sums += np.bincount(latents, values, arrays.d_sae)
            np.maximum.at(maxes, latents, values)
        found = np.flatnonzero(counts)
        return cls.of(
            arrays,
            found,
            counts[found],
            sums[found],
            maxes[found],
            group_count=len(positions),
        )

    def at(self, place: int) -> dict[str, Any]:
        """The numbers of one entry, by their names in the REST shapes."""
        count = int(self.counts[place])
        return {
            "count": count,
            "f1": float(self.f1[place]),
            "lift": float(self.lift[place]),
            "recall": float(self.recall[place]),
            "precision": float(self.precision[place]),
            "mean_activation": float(self.sums[place]) / count,
            "max_activation": float(self.maxes[place]),
        }

    def num_reaching(self, min_count: int) -> int:
        """Number of latents with c(t, f) >= `min_count`."""
        return int((self.counts >= min_count).sum())

    def best(self, rank: LookupRank, min_count: int, limit: int) -> list[int]:
        """Entries of the best latents with c(t, f) >= `min_count`; ties by count, then latent."""
        value = {
            "f1": self.f1,
            "lift": self.lift,
            "recall": self.recall,
            "precision": self.precision,
            "max": self.maxes,
        }[rank]
        places = np.flatnonzero(self.counts >= min_count)
        if len(places) > limit:
            # Sort only what can be among the best.
            threshold = np.partition(value[places], len(places) - limit)[len(places) - limit]
            places = places[value[places] >= threshold]
        order = np.lexsort((self.latents[places], -self.counts[places], -value[places]))
        return places[order][:limit].tolist()


def _sum_by_latent(
    latents: NDArray[Any],
    counts: NDArray[Any],
    sums: NDArray[Any],
    maxes: NDArray[Any],
    *,
    d_sae: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Merge the entries of each latent: sums of counts and of sums, maximum of maxes."""
    total = np.bincount(latents, counts, d_sae).astype(np.int64)
    total_sum = np.bincount(latents, sums, d_sae)
    largest = np.zeros(d_sae, np.float64)
    # Without these conversions numpy takes a path that is many times slower.
    np.maximum.at(largest, latents.astype(np.intp), maxes.astype(np.float64))
    present = np.flatnonzero(total)
    return present, total[present], total_sum[present].astype(np.float64), largest[present]


def concatenated_ranges(starts: NDArray[np.int64], groups: NDArray[Any]) -> NDArray[np.int64]:
    """Places of all entries of several groups in order, without a Python loop."""
    lengths = starts[groups + 1] - starts[groups]
    offsets = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts[groups] - offsets, lengths)
