"""Token text to features: which tokens a text means, and which latents are active on them.

The statistics over the N positions of an index: with c(t, f) the positions that hold one of the
group's tokens and on which latent f is active, recall = c(t, f) / c(t), precision = c(t, f) / c(f),
F1 their harmonic mean, lift = precision / (c(t) / N).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process
from tokenizers import Tokenizer

from sae_engine.errors import UserError
from sae_engine.features.index.format import IndexArrays
from sae_engine.features.index.vocabulary import Vocabulary
from sae_engine.schema.lookup import LookupRank, TokenMatch

NUM_SPELLINGS, LEAST_RATIO = 6, 60
"""How many spellings are offered, and how alike they must be, in percent."""


class Meaning(NamedTuple):
    """What a text stands for."""

    ids: list[int]
    """Tokens of the vocabulary that match by themselves."""
    phrases: list[list[int]]
    """Otherwise the text as several tokens, with and without a leading space."""


class Statistics(NamedTuple):
    """Latents active on a set of positions, one entry per latent, ascending."""

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
        latents: NDArray[np.int64],
        counts: NDArray[np.int64],
        sums: NDArray[np.float64],
        maxes: NDArray[np.float64],
        *,
        group_count: int | NDArray[np.int64],
        fired: NDArray[np.int64],
        num_tokens: int,
    ) -> Self:
        """Derive the shares from c(t, f), c(t) = `group_count`, c(f) = `fired` [d_sae] and N."""
        precision = counts / fired[latents]
        return cls(
            latents=latents,
            counts=counts,
            sums=sums,
            maxes=maxes,
            recall=counts / group_count,
            precision=precision,
            f1=2.0 * counts / (group_count + fired[latents]),
            lift=precision * num_tokens / group_count,
        )

    def at(self, place: int) -> dict[str, Any]:
        """One latent's numbers, by the names they travel under."""
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

    def best(self, rank: LookupRank, min_count: int, limit: int) -> list[int]:
        """Places of the best latents with enough positions; ties by count, then by latent."""
        value = {
            "f1": self.f1,
            "lift": self.lift,
            "recall": self.recall,
            "precision": self.precision,
            "max": self.maxes,
        }[rank]
        places = np.flatnonzero(self.counts >= min_count)
        if len(places) > limit:
            # Only what can reach the top is sorted.
            threshold = np.partition(value[places], len(places) - limit)[len(places) - limit]
            places = places[value[places] >= threshold]
        order = np.lexsort((self.latents[places], -self.counts[places], -value[places]))
        return places[order][:limit].tolist()


def resolve(
    text: str, match: TokenMatch, vocabulary: Vocabulary, tokenizer: Callable[[], Tokenizer]
) -> Meaning:
    """Find what `text` means; raises `UserError` when it is empty.

    `fold` ignores case and a leading or trailing space; `exact` ignores nothing; `substring`
    ignores case; `prefix` ignores case and, when `text` has none, the token's leading space. A text
    that is no token under `fold` or `exact` is a phrase, compared exactly; under `fold` also with
    or without a space before it.
    """
    if not text:
        raise UserError("The text to look up is empty; type a token, a word or a phrase.")
    bare = text.strip(" ▁")
    if match == "prefix":
        start, with_space = text.casefold(), text.startswith(" ")
        entries = vocabulary.casefolded if with_space else vocabulary.folded
        return Meaning([i for i, entry in enumerate(entries) if entry.startswith(start)], [])
    if match == "substring":
        part = text.casefold()
        return Meaning([i for i, entry in enumerate(vocabulary.casefolded) if part in entry], [])
    if match == "exact" or not bare:
        ids = _places(vocabulary.texts, text)
        forms = [text]
    else:
        ids = _places(vocabulary.folded, bare.casefold())
        forms = [bare, f" {bare}"]
    return Meaning(ids, []) if ids else _tokenized(forms, tokenizer())


def _places(entries: list[str], wanted: str) -> list[int]:
    """Where a list holds a string; `list.index` is many times faster than a comprehension."""
    places: list[int] = []
    with contextlib.suppress(ValueError):
        while True:
            places.append(entries.index(wanted, places[-1] + 1 if places else 0))
    return places


def _tokenized(forms: Sequence[str], tokenizer: Tokenizer) -> Meaning:
    """Token sequences of the forms; after normalization a form may be one token after all."""
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")
    sequences: list[list[int]] = []
    for form in forms:
        ids = tokenizer.encode(form, add_special_tokens=False).ids
        if ids and unknown not in ids and ids not in sequences:
            sequences.append(ids)
    singles = [ids[0] for ids in sequences if len(ids) == 1]
    return Meaning(singles, []) if singles else Meaning([], sequences)


def phrase_positions(arrays: IndexArrays, phrase: Sequence[int]) -> NDArray[np.int64]:
    """Positions of the last token wherever the sequence stands inside one row, ascending."""
    counts = [int(arrays.token_starts[i + 1] - arrays.token_starts[i]) for i in phrase]
    rarest = int(np.argmin(counts))
    start, end = arrays.token_starts[phrase[rarest]], arrays.token_starts[phrase[rarest] + 1]
    firsts = arrays.token_positions[start:end].astype(np.int64) - rarest
    lasts = firsts + len(phrase) - 1
    inside = (firsts >= 0) & (lasts < len(arrays.token_ids))
    firsts, lasts = firsts[inside], lasts[inside]
    rows = np.searchsorted(arrays.row_starts, firsts, side="right")
    matches = arrays.row_starts[rows] > lasts
    for offset, id_ in enumerate(phrase):
        matches &= arrays.token_ids[firsts + offset] == id_
    return lasts[matches]


def statistics_of_tokens(arrays: IndexArrays, ids: Sequence[int]) -> Statistics:
    """Statistics over all positions that hold one of the tokens, from the exact table."""
    token_counts = np.diff(arrays.token_starts)[list(ids)]
    if len(ids) == 1:
        start, end = arrays.pair_starts[ids[0]], arrays.pair_starts[ids[0] + 1]
        latents = arrays.pair_latents[start:end].astype(np.int64)
        counts = arrays.pair_counts[start:end].astype(np.int64)
        sums = arrays.pair_sums[start:end].astype(np.float64)
        maxes = arrays.pair_maxes[start:end].astype(np.float64)
    else:
        pairs = _concatenated_ranges(arrays.pair_starts, np.array(ids))
        latents, counts, sums, maxes = _merged(
            arrays.pair_latents[pairs],
            arrays.pair_counts[pairs],
            arrays.pair_sums[pairs],
            arrays.pair_maxes[pairs],
            d_sae=len(arrays.latent_starts) - 1,
        )
    return Statistics.of(
        latents,
        counts,
        sums,
        maxes,
        group_count=int(token_counts.sum()),
        fired=np.diff(arrays.latent_starts),
        num_tokens=len(arrays.token_ids),
    )


def statistics_of_positions(arrays: IndexArrays, positions: NDArray[np.int64]) -> Statistics:
    """Statistics over a set of distinct positions, from their codes."""
    acts = arrays.acts[positions]
    active = acts > 0
    values = acts[active].astype(np.float64)
    latents, counts, sums, maxes = _merged(
        arrays.indices[positions][active],
        np.ones(len(values), np.int64),
        values,
        values,
        d_sae=len(arrays.latent_starts) - 1,
    )
    return Statistics.of(
        latents,
        counts,
        sums,
        maxes,
        group_count=len(positions),
        fired=np.diff(arrays.latent_starts),
        num_tokens=len(arrays.token_ids),
    )


def _merged(
    latents: NDArray[Any],
    counts: NDArray[Any],
    sums: NDArray[Any],
    maxes: NDArray[Any],
    *,
    d_sae: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Unite entries of the same latent."""
    total = np.bincount(latents, counts, d_sae).astype(np.int64)
    total_sum = np.bincount(latents, sums, d_sae)
    largest = np.zeros(d_sae, np.float64)
    # Without a conversion numpy takes a path that is many times slower.
    np.maximum.at(largest, latents.astype(np.intp), maxes.astype(np.float64))
    present = np.flatnonzero(total)
    return (
        present.astype(np.int64),
        total[present],
        total_sum[present].astype(np.float64),
        largest[present],
    )


def _concatenated_ranges(starts: NDArray[np.int64], groups: NDArray[Any]) -> NDArray[np.int64]:
    """Places of all entries of several groups, without a loop over them."""
    lengths = starts[groups + 1] - starts[groups]
    offsets = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts[groups] - offsets, lengths)


def nearest_spellings(
    text: str, vocabulary: Vocabulary, token_counts: NDArray[np.int64]
) -> list[str]:
    """Tokens of the corpus that are spelled most like a text, case and leading space ignored."""
    wanted = text.strip().casefold()
    occurring = {vocabulary.folded[i]: i for i in np.flatnonzero(token_counts)[::-1].tolist()}
    occurring.pop("", None)
    found = process.extract(
        wanted, list(occurring), scorer=fuzz.ratio, score_cutoff=LEAST_RATIO, limit=NUM_SPELLINGS
    )
    # As likely as each other by spelling: the commoner first.
    found.sort(key=lambda match: (-match[1], -int(token_counts[occurring[match[0]]])))
    return [vocabulary.text(occurring[match[0]]) for match in found]


def why_nothing(
    text: str, match: TokenMatch, meaning: Meaning, count: int, min_count: int, num_tokens: int
) -> str:
    """Why a lookup found no feature, in words."""
    shown, corpus = repr(text[:100]), f"the {num_tokens:,} tokens of this index"
    if not meaning.ids and not meaning.phrases:
        how = {"prefix": "starts with", "substring": "contains"}.get(match, "is")
        return f"No token of this model's vocabulary {how} {shown}; try another spelling."
    if count == 0 and meaning.phrases:
        return f"{shown} is several tokens, and {corpus} never hold them in that order."
    if count == 0:
        return f"{shown} does not occur in {corpus}, so nothing is known about its features."
    return (
        f"{shown} occurs {count:,} times in {corpus}, but no feature is active on at least "
        f"{min_count} of them; lower min_count."
    )
