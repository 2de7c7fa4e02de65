"""Answers questions about features from an index folder, in the shapes that travel over REST.

Needs numpy and tokenizers only: no torch, no model. Read-only and safe to use from several threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sae_engine.features.index.contexts import ContextReader, Window
from sae_engine.features.index.damage import naming_damage
from sae_engine.features.index.facts import FeatureFacts, NoSuchFeatureError
from sae_engine.features.index.format import (
    TOKENIZER,
    IndexArrays,
    IndexDamagedError,
    Manifest,
    array_file,
    check_sizes,
    open_index,
    verify_file,
    verify_files,
)
from sae_engine.features.index.listing import (
    NO_TOKEN,
    cursor_at,
    matching_state,
    matching_text,
    offset_of,
    ordered,
)
from sae_engine.features.index.lookup import (
    nearest_spellings,
    phrase_positions,
    resolve,
    statistics_of_positions,
    statistics_of_tokens,
    why_nothing,
)
from sae_engine.features.index.vocabulary import Vocabulary
from sae_engine.schema.features import (
    Feature,
    FeatureDetail,
    FeaturePage,
    FeatureRow,
    FeatureSort,
    FeatureState,
    SortOrder,
)
from sae_engine.schema.lookup import (
    FeatureMatch,
    LookupRank,
    LookupResult,
    MatchedToken,
    TokenMatch,
)

__all__ = ["FeatureIndex", "IndexDamagedError", "NoSuchFeatureError"]

NUM_INTERVALS = 5
MAX_MEMBERS = 500
"""Matched tokens that a lookup lists; its statistics cover all of them."""


class FeatureIndex:
    """One published feature index."""

    def __init__(self, folder: Path, manifest: Manifest, arrays: IndexArrays) -> None:
        self.folder = folder
        self.manifest = manifest
        self._arrays = arrays
        self._vocabulary = _vocabulary(folder, manifest, arrays)
        self._contexts = ContextReader(arrays, self._vocabulary)
        self._facts = FeatureFacts(arrays, manifest.num_tokens, self._vocabulary, self._contexts)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Memory-map an index folder; raises `IndexDamagedError` naming the damaged file."""
        return cls(folder, *open_index(folder))

    def check_sizes(self) -> None:
        """Raises `IndexDamagedError` naming a file that is missing or truncated by now."""
        check_sizes(self.folder, self.manifest)

    def verify(self) -> None:
        """Compare all files with their checksums; raises `IndexDamagedError` naming the file."""
        verify_files(self.folder)

    @property
    def arrays(self) -> IndexArrays:
        """The memory-mapped arrays, for who goes through all of them."""
        return self._arrays

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def tokens(self) -> int:
        """Tokens that the SAE had been trained on."""
        return self.manifest.tokens

    @property
    def num_tokens(self) -> int:
        """Positions in the index corpus."""
        return self.manifest.num_tokens

    @property
    def d_sae(self) -> int:
        return self.manifest.d_sae

    @property
    def k(self) -> int:
        return self.manifest.k

    @property
    def created_at(self) -> datetime:
        return self.manifest.created_at

    @property
    def final(self) -> bool:
        return self.manifest.final

    @naming_damage
    def features(
        self,
        *,
        sort: FeatureSort = "density",
        order: SortOrder = "desc",
        min_density: float | None = None,
        max_density: float | None = None,
        state: FeatureState | None = None,
        q: str | None = None,
        labels: Mapping[int, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> FeaturePage:
        """A page of the features that pass all filters; density bounds are inclusive.

        `q` searches labels and top tokens, or is an index such as `#123`. Raises `UserError` for a
        foreign cursor.
        """
        labels = labels or {}
        offset = offset_of(cursor) if cursor else 0
        keep = np.ones(self.d_sae, np.bool_)
        density = self.fired / self.num_tokens
        if min_density is not None:
            keep &= density >= min_density
        if max_density is not None:
            keep &= density <= max_density
        if state is not None:
            keep &= matching_state(self.fired, self.num_tokens, state)
        if q and q.strip():
            keep &= matching_text(q, labels, self._facts.top_tokens, self._vocabulary)
        chosen = ordered(
            np.flatnonzero(keep),
            sort,
            order,
            fired=self.fired,
            max_acts=lambda: self._facts.max_acts,
            labels=labels,
        )
        page = chosen[offset : offset + limit].tolist()
        end = offset + len(page)
        return FeaturePage(
            items=[self._facts.row(i, labels) for i in page],
            next_cursor=cursor_at(end) if page and end < len(chosen) else None,
            total=len(chosen),
            snapshot=self.step,
        )

    @naming_damage
    def feature(
        self,
        index: int,
        *,
        labels: Mapping[int, str] | None = None,
        notes: str = "",
        starred: bool = False,
        num_contexts: int = 20,
        window: Window = 16,
    ) -> FeatureDetail:
        """Everything about one feature; raises `NoSuchFeatureError`."""
        labels = labels or {}
        return FeatureDetail(
            **dict(self._facts.of(index, labels)),
            snapshot=self.step,
            histogram=self._facts.histogram(index),
            contexts=self._contexts.strongest(index, window, num_contexts),
            intervals=self._contexts.intervals(index, window, NUM_INTERVALS),
            top_tokens=self._facts.token_statistics(index),
            logits=self._facts.logits(index),
            neighbours=self._facts.neighbours(index, labels),
            notes=notes,
            starred=starred,
        )

    @naming_damage
    def max_activations(self, indices: Sequence[int]) -> list[float]:
        """Largest activation of each feature on the index corpus, 0 for dead ones."""
        return [self._facts.max_act(index) for index in indices]

    @naming_damage
    def lookup(
        self,
        text: str,
        *,
        match: TokenMatch = "fold",
        rank: LookupRank = "f1",
        min_count: int = 5,
        limit: int = 20,
        labels: Mapping[int, str] | None = None,
    ) -> LookupResult:
        """The features that go with a token, a group of tokens or a phrase, best first.

        Only features active on at least `min_count` of the positions take part. Raises `UserError`
        for empty text.
        """
        labels = labels or {}
        meaning = resolve(text, match, self._vocabulary, lambda: self._tokenizer)
        is_phrase = bool(meaning.phrases)
        members = meaning.ids or list(dict.fromkeys(i for p in meaning.phrases for i in p))
        positions = np.unique(
            np.concatenate(
                [np.empty(0, np.int64)]
                + [phrase_positions(self._arrays, p) for p in meaning.phrases]
            )
        )
        count = len(positions) if is_phrase else int(self._facts.token_counts[meaning.ids].sum())
        features: list[FeatureMatch] = []
        if count:
            statistics = (
                statistics_of_positions(self._arrays, positions)
                if is_phrase
                else statistics_of_tokens(self._arrays, meaning.ids)
            )
            best = statistics.best(rank, min_count, limit)
            features = [self._facts.match(statistics, place, labels) for place in best]
        return LookupResult(
            tokens=self._matched(members, keep_order=is_phrase),
            features=features,
            phrase=is_phrase,
            count=count,
            message=None
            if features
            else why_nothing(text, match, meaning, count, min_count, self.num_tokens),
            suggestions=[]
            if count
            else nearest_spellings(text, self._vocabulary, self._facts.token_counts),
            snapshot=self.step,
        )

    @naming_damage
    def row(self, index: int, labels: Mapping[int, str]) -> FeatureRow:
        """One feature as a list shows it."""
        return self._facts.row(index, labels)

    @naming_damage
    def facts(self, index: int, labels: Mapping[int, str] | None = None) -> Feature:
        """What every list says of a feature; raises `NoSuchFeatureError`."""
        return self._facts.of(index, labels)

    @property
    def fired(self) -> NDArray[np.int64]:
        """[d_sae] on how many positions each latent is active."""
        return self._facts.fired

    @naming_damage
    def top_tokens(self, latents: NDArray[Any], num: int) -> list[list[str]]:
        """Texts of up to `num` tokens that go best with each of some latents, best first."""
        chosen = self._facts.top_tokens[latents, :num].tolist()
        return [[self._vocabulary.text(i) for i in ids if i != NO_TOKEN] for ids in chosen]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / TOKENIZER))

    def _matched(self, ids: Sequence[int], *, keep_order: bool) -> list[MatchedToken]:
        """Members of a group by count, or the tokens of a phrase as they come."""
        counts = self._facts.token_counts[list(ids)]
        order = range(len(ids)) if keep_order else np.lexsort((np.array(ids), -counts)).tolist()
        return [
            MatchedToken(id=ids[n], text=self._vocabulary.text(ids[n]), count=int(counts[n]))
            for n in order[:MAX_MEMBERS]
        ]


_vocabularies: dict[str, Vocabulary] = {}


def _vocabulary(folder: Path, manifest: Manifest, arrays: IndexArrays) -> Vocabulary:
    """Indexes of the same tokenizer share one vocabulary, which therefore must not be damaged."""
    files = [array_file("vocabulary_bytes"), array_file("vocabulary_offsets")]
    key = "".join(manifest.files[name].sha256 for name in files)
    if key not in _vocabularies:
        for name in files:
            verify_file(folder, manifest, name)
        _vocabularies[key] = Vocabulary(arrays.vocabulary_offsets, arrays.vocabulary_bytes)
    return _vocabularies[key]
