"""From a text to the tokens or phrases that it means, and to their positions in an index."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process
from tokenizers import Tokenizer

from sae_engine.errors import UserError
from sae_engine.features.index.associations import Associations
from sae_engine.features.index.format import IndexArrays
from sae_engine.features.index.vocabulary import Vocabulary
from sae_engine.schema.lookup import MatchedToken, TokenMatch

NUM_SPELLINGS = 6
"""Maximum number of suggested spellings."""
MIN_SIMILARITY = 60
"""Minimum similarity of a suggested spelling, in percent."""
MAX_MATCHED_TOKENS = 500
"""Maximum number of matched tokens in a result; its statistics cover all of them."""


class Meaning(NamedTuple):
    """What a text stands for: tokens, or else phrases."""

    ids: list[int]
    """Tokens of the vocabulary that match by themselves."""
    phrases: list[list[int]]
    """Token sequences of the text, with and without a leading space."""

    @property
    def tokens(self) -> list[int]:
        """The distinct tokens, in order."""
        return list(dict.fromkeys(self.ids or (i for phrase in self.phrases for i in phrase)))


def resolve(
    text: str, match: TokenMatch, vocabulary: Vocabulary, tokenizer: Callable[[], Tokenizer]
) -> Meaning:
    """Find what `text` means; raises `UserError` if it is empty.

    `fold` ignores case and outer spaces; `exact` ignores nothing; `substring` ignores case;
    `prefix` ignores case and, if `text` has no leading space, the token's leading space. Under
    `fold` and `exact`, a text that is not a token is a phrase. Phrases are compared exactly, under
    `fold` with and without a leading space.
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
    """All indices of a string in a list; `list.index` is many times faster than a comprehension."""
    places: list[int] = []
    with contextlib.suppress(ValueError):
        while True:
            places.append(entries.index(wanted, places[-1] + 1 if places else 0))
    return places


def _tokenized(forms: Sequence[str], tokenizer: Tokenizer) -> Meaning:
    """Token sequences of the forms; after normalization, a form may be a single token."""
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")
    sequences: list[list[int]] = []
    for form in forms:
        ids = tokenizer.encode(form, add_special_tokens=False).ids
        if ids and unknown not in ids and ids not in sequences:
            sequences.append(ids)
    singles = [ids[0] for ids in sequences if len(ids) == 1]
    return Meaning(singles, []) if singles else Meaning([], sequences)


def associate(arrays: IndexArrays, meaning: Meaning) -> tuple[int, Associations]:
    """Number of positions that hold the meaning, and the latents active on them."""
    if not meaning.phrases:
        count = int(arrays.token_counts[meaning.ids].sum())
        return count, Associations.of_tokens(arrays, meaning.ids)
    found = [_phrase_positions(arrays, phrase) for phrase in meaning.phrases]
    positions = np.unique(np.concatenate(found))
    return len(positions), Associations.of_positions(arrays, positions)


def _phrase_positions(arrays: IndexArrays, phrase: Sequence[int]) -> NDArray[np.int64]:
    """Positions of the last token of each occurrence within one row, ascending."""
    rarest = int(np.argmin(arrays.token_counts[list(phrase)]))
    start, end = arrays.token_starts[phrase[rarest] : phrase[rarest] + 2]
    firsts = arrays.token_positions[start:end].astype(np.int64) - rarest
    lasts = firsts + len(phrase) - 1
    inside = (firsts >= 0) & (lasts < arrays.num_tokens)
    firsts, lasts = firsts[inside], lasts[inside]
    rows = np.searchsorted(arrays.row_starts, firsts, side="right")
    matches = arrays.row_starts[rows] > lasts
    for offset, id_ in enumerate(phrase):
        matches &= arrays.token_ids[firsts + offset] == id_
    return lasts[matches]


def matched_tokens(
    meaning: Meaning, arrays: IndexArrays, vocabulary: Vocabulary
) -> list[MatchedToken]:
    """Tokens of a group, most frequent first, or of a phrase, in order."""
    ids = meaning.tokens
    counts = arrays.token_counts[ids]
    order = range(len(ids))
    if not meaning.phrases:
        order = np.lexsort((np.array(ids), -counts)).tolist()
    return [
        MatchedToken(id=ids[n], text=vocabulary.text(ids[n]), count=int(counts[n]))
        for n in order[:MAX_MATCHED_TOKENS]
    ]


def similar_spellings(text: str, arrays: IndexArrays, vocabulary: Vocabulary) -> list[str]:
    """Tokens of the corpus with the most similar spelling, ignoring case and leading space."""
    counts = arrays.token_counts
    occurring = {vocabulary.folded[i]: i for i in np.flatnonzero(counts)[::-1].tolist()}
    occurring.pop("", None)
    found = process.extract(
        text.strip().casefold(),
        list(occurring),
        scorer=fuzz.ratio,
        score_cutoff=MIN_SIMILARITY,
        limit=NUM_SPELLINGS,
    )
    # Among equally similar spellings, more frequent ones first.
    found.sort(key=lambda match: (-match[1], -int(counts[occurring[match[0]]])))
    return [vocabulary.text(occurring[match[0]]) for match in found]


def why_nothing(
    text: str, match: TokenMatch, meaning: Meaning, count: int, min_count: int, num_tokens: int
) -> str:
    """Why a lookup found no features, in words."""
    shown, corpus = repr(text[:100]), f"the {num_tokens:,} tokens of this index"
    if not meaning.tokens:
        how = {"prefix": "starts with", "substring": "contains"}.get(match, "is")
        return f"No token of this model's vocabulary {how} {shown}; try another spelling."
    if count == 0 and meaning.phrases:
        return f"{shown} is several tokens, and that sequence does not occur in {corpus}."
    if count == 0:
        return f"{shown} does not occur in {corpus}, so its features are unknown."
    times = "once" if count == 1 else f"{count:,} times"
    return (
        f"{shown} occurs {times} in {corpus}, but no feature fires on at least {min_count:,} of "
        "its positions; lower min_count."
    )
