"""From a text to the positions that it means in an index: those of tokens, or those where it stands
in the corpus's text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from rapidfuzz import fuzz, process
from tokenizers import Tokenizer

from sae_engine.errors import UserError
from sae_engine.features.index.associations import Associations
from sae_engine.features.index.corpus_text import CorpusText, Hits
from sae_engine.features.index.expressions import find_expression
from sae_engine.features.index.format import IndexArrays
from sae_engine.features.index.vocabulary import Vocabulary
from sae_engine.schema.lookup import MatchedToken, TokenMatch, literal_text

NUM_SPELLINGS = 6
"""Maximum number of suggested spellings."""
MIN_SIMILARITY = 60
"""Minimum similarity of a suggested spelling, in percent."""
MAX_MATCHED_TOKENS = 500
"""Maximum number of matched tokens in a result; its statistics cover all of them."""


class Query(NamedTuple):
    """What is looked up, and how it is compared."""

    text: str
    match: TokenMatch = "fold"
    exact_case: bool = False

    @property
    def heeds_case(self) -> bool:
        return self.exact_case or self.match == "exact"

    @property
    def literal(self) -> str:
        """The text to find in the corpus."""
        return literal_text(self.text, self.match)


class Meaning(NamedTuple):
    """What a query stands for: tokens, or else positions in the text."""

    ids: list[int]
    """Tokens of the vocabulary that match by themselves."""
    text_hits: Hits | None
    """Where the text occurs in the corpus, if statistics are over that instead of the tokens."""
    occurrences: int | None
    """How often the text stands there; None for parts of tokens, which are not looked for."""


def resolve(
    query: Query,
    arrays: IndexArrays,
    vocabulary: Vocabulary,
    tokenizer: Callable[[], Tokenizer],
    corpus: Callable[[], CorpusText],
) -> Meaning:
    """Find what a query means; raises `UserError` for empty text and for a bad expression.

    `fold` and `exact` mean the token that is the text or, if no such token occurs, every occurrence
    of the text in the corpus; `fold` ignores outer spaces. `prefix` and `substring` mean tokens
    that contain the text; `prefix` ignores a token's leading space if the text has none. `text`
    means every occurrence of the text, `regex` the matches of an expression. All but `exact` ignore
    case unless the query heeds it.
    """
    if not query.text:
        raise UserError("The text to look up is empty; type a token, a word or a phrase.")
    if query.match == "regex":
        hits = find_expression(corpus(), query.text, exact_case=query.exact_case)
        return Meaning([], hits, hits.occurrences)
    ids = _matching_tokens(query, vocabulary)
    if query.match in ("prefix", "substring"):
        return Meaning(ids, None, None)
    if query.match != "text":
        ids = ids or _normalized_token(query, tokenizer())
    occurrences = corpus().count(query.literal, exact_case=query.heeds_case) if ids else 0
    if ids and (arrays.token_counts[ids].any() or not occurrences):
        return Meaning(ids, None, occurrences)
    hits = corpus().literal(query.literal, exact_case=query.heeds_case)
    return Meaning([], hits, hits.occurrences)


def _matching_tokens(query: Query, vocabulary: Vocabulary) -> list[int]:
    """Tokens that match by themselves."""
    plain, bare = vocabulary.texts, vocabulary.bare_texts
    wanted = query.literal
    if not query.heeds_case:
        plain, bare, wanted = vocabulary.casefolded, vocabulary.folded, wanted.casefold()
    match query.match:
        case "prefix":
            entries = plain if wanted.startswith(" ") else bare
            return [i for i, entry in enumerate(entries) if entry.startswith(wanted)]
        case "substring":
            return [i for i, entry in enumerate(plain) if wanted in entry]
        case "fold":
            return _places(bare if wanted.strip(" ") else plain, wanted)
        case "exact":
            return _places(plain, wanted)
        case _:
            return []


def _places(entries: list[str], wanted: str) -> list[int]:
    """All indices of a string in a list; `list.index` is many times faster than a comprehension."""
    places: list[int] = []
    with contextlib.suppress(ValueError):
        while True:
            places.append(entries.index(wanted, places[-1] + 1 if places else 0))
    return places


def _normalized_token(query: Query, tokenizer: Tokenizer) -> list[int]:
    """The token that the text becomes if the tokenizer changes characters, such as `ｃ` to `c`."""
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")
    text = query.literal
    forms = [text, f" {text}"] if query.match == "fold" else [text]
    encoded = [tokenizer.encode(form, add_special_tokens=False).ids for form in forms]
    return list({ids[0]: None for ids in encoded if len(ids) == 1 and ids[0] != unknown})


def associate(arrays: IndexArrays, meaning: Meaning) -> tuple[int, Associations]:
    """Number of positions that hold the meaning, and the latents active on them."""
    if meaning.text_hits:
        positions = meaning.text_hits.positions
        return len(positions), Associations.of_positions(arrays, positions)
    count = int(arrays.token_counts[meaning.ids].sum())
    return count, Associations.of_tokens(arrays, meaning.ids)


def matched_tokens(
    meaning: Meaning, arrays: IndexArrays, vocabulary: Vocabulary
) -> list[MatchedToken]:
    """Tokens that match, or in which the text ends, most frequent first."""
    ids = np.array(meaning.ids, np.int64)
    counts = arrays.token_counts[ids]
    if meaning.text_hits:
        last = arrays.token_ids[meaning.text_hits.positions].astype(np.int64)
        ids, counts = np.unique(last, return_counts=True)
    order = np.lexsort((ids, -counts))[:MAX_MATCHED_TOKENS].tolist()
    return [
        MatchedToken(id=int(ids[n]), text=vocabulary.text(int(ids[n])), count=int(counts[n]))
        for n in order
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


def why_nothing(query: Query, meaning: Meaning, count: int, min_count: int, num_tokens: int) -> str:
    """Why a lookup found no features, in words."""
    shown, corpus = repr(query.text[:100]), f"the {num_tokens:,} indexed tokens"
    if query.match in ("prefix", "substring") and not meaning.ids:
        how = "starts with" if query.match == "prefix" else "contains"
        return f"No token of this model's vocabulary {how} {shown}; try another spelling."
    if count == 0 and query.match == "regex":
        return f"The expression {shown} matches nothing in {corpus}."
    if count == 0:
        return f"{shown} does not occur in {corpus}."
    times = "once" if count == 1 else f"{count:,} times"
    return (
        f"{shown} occurs {times} in {corpus}, but no feature fires on at least {min_count:,} of "
        "its positions; lower the minimum count."
    )
