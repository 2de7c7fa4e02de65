"""How well one word describes each latent.

A group is all tokens that are spelled alike apart from case and a leading space. Over the N
positions of an index, with c(g) the positions that hold the group, c(f) those on which latent f is
active, and c(g, f) those with both,

    clarity = 2 c(g, f) / (c(g) + c(f) + DOUBT)

of the best word among the groups of the latent's top tokens: its F1, lowered for rare words and
latents. A group without a letter or digit is no word, or punctuation would lead every list. Fed
and read by `details`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.index.associations import concatenated_ranges
from sae_engine.features.index.format import IndexArrays
from sae_engine.features.index.vocabulary import Vocabulary

DOUBT = 20
"""A feature that fired on 10 positions, all of its word's, has the clarity .5."""


class Clarity(NamedTuple):
    values: NDArray[np.float64]
    """Per latent, from 0 for one without a word to almost 1."""
    tokens: NDArray[np.int64]
    """Per latent, the most frequent token of the best word; -1 for one without a word."""


def clarity(
    arrays: IndexArrays,
    groups: Groups,
    latents: NDArray[np.int64],
    top_tokens: NDArray[np.int64],
) -> Clarity:
    """The clarity of some latents; `top_tokens` has a row for each, negative where it has none."""
    rows, chosen, together = latent_groups(arrays, groups, latents, top_tokens)
    in_words = groups.are_words[chosen]
    rows, chosen, together = rows[in_words], chosen[in_words], together[in_words]
    values = 2 * together / (groups.counts[chosen] + arrays.fired[latents[rows]] + DOUBT)
    order = np.lexsort((values, rows))  # the best word of each latent comes last
    best = order[np.diff(rows[order], append=-1) != 0]
    found = Clarity(np.zeros(len(latents)), np.full(len(latents), -1, np.int64))
    found.values[rows[best]] = values[best]
    found.tokens[rows[best]] = groups.names[chosen[best]]
    return found


class Groups:
    """Groups of the tokens that occur in the corpus."""

    def __init__(self, arrays: IndexArrays, vocabulary: Vocabulary) -> None:
        occurring = np.flatnonzero(arrays.token_counts)
        number: dict[str, int] = {}
        spelled = np.array(
            [number.setdefault(vocabulary.folded[t], len(number)) for t in occurring.tolist()],
            np.int64,
        )
        self.of_token = np.zeros(len(arrays.token_counts), np.int64)
        self.of_token[occurring] = spelled
        frequency = arrays.token_counts[occurring]
        self.are_words = np.array([any(c.isalnum() for c in text) for text in number], bool)
        self.counts = np.bincount(spelled, frequency, len(number)).astype(np.int64)
        """Positions that hold each group."""
        order = np.lexsort((-frequency, spelled))
        self.members = occurring[order]
        """Tokens by group, most frequent first."""
        self.starts = np.searchsorted(
            np.array(spelled, np.int64)[order], np.arange(len(number) + 1)
        )
        self.names = self.members[self.starts[:-1]] if number else np.zeros(0, np.int64)


def latent_groups(
    arrays: IndexArrays,
    groups: Groups,
    latents: NDArray[np.int64],
    top_tokens: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The groups of each latent's top tokens: places in `latents`, groups and c(g, f), one entry
    per pair, by place.
    """
    rows, columns = np.nonzero(top_tokens >= 0)
    if not len(rows):
        return rows, rows, rows
    keys = rows * len(groups.counts) + groups.of_token[top_tokens[rows, columns]]
    rows, chosen = np.divmod(np.unique(keys), len(groups.counts))
    sizes = groups.starts[chosen + 1] - groups.starts[chosen]
    tokens = groups.members[concatenated_ranges(groups.starts, chosen)]
    counts = pair_counts(arrays, tokens, np.repeat(latents[rows], sizes))
    return rows, chosen, np.add.reduceat(counts, np.cumsum(sizes) - sizes)


def pair_counts(
    arrays: IndexArrays, tokens: NDArray[Any], latents: NDArray[Any]
) -> NDArray[np.int64]:
    """Number of positions that hold each token and on which the latent at the same place is active,
    by binary search in the table of pairs.
    """
    low, end = arrays.pair_starts[tokens], arrays.pair_starts[tokens + 1]
    high, last = end.copy(), len(arrays.pair_latents) - 1
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high) // 2
        is_less = arrays.pair_latents[np.minimum(middle, last)] < latents
        is_open = low < high
        low = np.where(is_open & is_less, middle + 1, low)
        high = np.where(is_open & ~is_less, middle, high)
    place = np.minimum(low, last)
    found = (low < end) & (arrays.pair_latents[place] == latents)
    return np.where(found, arrays.pair_counts[place], 0).astype(np.int64)
