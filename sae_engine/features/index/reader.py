"""`FeatureIndex` answers queries from an index folder, in REST shapes.

Needs numpy, tokenizers and safetensors, but neither torch nor a model. Read-only and thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sae_engine.features.index.contexts import ContextReader, Window
from sae_engine.features.index.corpus_text import CorpusText
from sae_engine.features.index.details import (
    FeatureDetails,
    Labels,
    NoSuchFeatureError,
    Stars,
)
from sae_engine.features.index.format import (
    SAE,
    TOKENIZER,
    IndexArrays,
    array_file,
    open_decoder,
    open_index,
)
from sae_engine.features.index.listing import (
    NO_TOKEN,
    cursor_at,
    is_in_state,
    is_marked,
    matches_text,
    offset_of,
    ordered,
)
from sae_engine.features.index.lookup import (
    Query,
    associate,
    matched_tokens,
    resolve,
    similar_spellings,
    why_nothing,
)
from sae_engine.features.index.manifest import IndexDamagedError, Manifest, damage_checked
from sae_engine.features.index.shared import Shared
from sae_engine.features.index.vocabulary import Vocabulary
from sae_engine.schema.features import (
    Feature,
    FeatureDetail,
    FeatureMark,
    FeaturePage,
    FeatureRow,
    FeatureSort,
    FeatureState,
    SortOrder,
)
from sae_engine.schema.lookup import LookupRank, LookupResult, TokenMatch

__all__ = ["FeatureIndex", "IndexDamagedError", "NoSuchFeatureError"]

NUM_INTERVALS = 5
MAX_VOCABULARIES = 8
"""Vocabularies kept in memory."""
MAX_TEXTS = 2
"""Texts of index corpora kept in memory, about 8 bytes per token each."""


class FeatureIndex:
    """A published feature index.

    If a query fails because a file is damaged, it raises `IndexDamagedError` naming the file.
    """

    def __init__(self, folder: Path, manifest: Manifest, arrays: IndexArrays) -> None:
        self.folder = folder
        self.manifest = manifest
        self.arrays = arrays
        """The memory-mapped arrays, for callers that scan them."""
        self.vocabulary = _vocabularies.get(
            folder,
            manifest,
            lambda: Vocabulary(arrays.vocabulary_offsets, arrays.vocabulary_bytes),
        )
        self._contexts = ContextReader(arrays, self.vocabulary)
        self._details = FeatureDetails(arrays, self.vocabulary, self._contexts)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Memory-map an index folder; raises `IndexDamagedError`."""
        return cls(folder, *open_index(folder))

    def check_sizes(self) -> None:
        """Raise `IndexDamagedError` if a file has gone missing or been truncated."""
        self.manifest.check_sizes(self.folder)

    def verify(self) -> None:
        """Compare all files with their checksums; raises `IndexDamagedError`."""
        Manifest.read(self.folder).verify(self.folder)  # the folder may have been replaced

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def tokens(self) -> int:
        """Tokens that the SAE was trained on."""
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

    @property
    def fired(self) -> NDArray[np.int64]:
        """[d_sae] number of positions on which each latent is active."""
        return self.arrays.fired

    def clarity(self) -> NDArray[np.float64]:
        """[d_sae] how well one word describes each latent; see `features.index.clarity`."""
        return self._details.clarity

    @damage_checked
    def features(
        self,
        *,
        sort: FeatureSort = "density",
        order: SortOrder = "desc",
        min_density: float | None = None,
        max_density: float | None = None,
        state: FeatureState | None = None,
        mark: FeatureMark | None = None,
        q: str | None = None,
        labels: Labels | None = None,
        stars: Stars = (),
        limit: int = 50,
        cursor: str | None = None,
    ) -> FeaturePage:
        """A page of the features that pass all filters; density bounds are inclusive.

        `q` searches labels and top tokens, or is an index such as `#123`. Raises `UserError` for an
        invalid cursor.
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
            keep &= is_in_state(self.fired, self.num_tokens, state)
        if mark is not None:
            keep &= is_marked(self.d_sae, mark, labels, stars)
        if q and q.strip():
            keep &= matches_text(q, labels, self._details.top_tokens, self.vocabulary)
        chosen = ordered(
            np.flatnonzero(keep),
            sort,
            order,
            arrays=self.arrays,
            labels=labels,
            stars=stars,
            clarity=self.clarity,
        )
        page = chosen[offset : offset + limit].tolist()
        end = offset + len(page)
        return FeaturePage(
            items=[self._details.row(i, labels, stars) for i in page],
            next_cursor=cursor_at(end) if page and end < len(chosen) else None,
            total=len(chosen),
            snapshot=self.step,
        )

    @damage_checked
    def summary(self, index: int, labels: Labels | None = None) -> Feature:
        """A feature's density, max activation, state and label; raises `NoSuchFeatureError`."""
        return self._details.feature(index, labels or {})

    @damage_checked
    def row(self, index: int, labels: Labels, stars: Stars = ()) -> FeatureRow:
        """A feature as in a list; raises `NoSuchFeatureError`."""
        return self._details.row(index, labels, stars)

    @damage_checked
    def feature(
        self,
        index: int,
        *,
        labels: Labels | None = None,
        stars: Stars = (),
        notes: str = "",
        num_contexts: int = 20,
        window: Window = 16,
    ) -> FeatureDetail:
        """Everything about one feature; raises `NoSuchFeatureError`."""
        labels = labels or {}
        return FeatureDetail(
            **dict(self._details.feature(index, labels, stars)),
            snapshot=self.step,
            histogram=self._details.histogram(index),
            contexts=self._contexts.strongest(index, window, num_contexts),
            intervals=self._contexts.intervals(index, window, NUM_INTERVALS),
            top_tokens=self._details.token_statistics(index),
            logits=self._details.logits(index),
            neighbours=self._details.neighbours(index, labels, stars),
            notes=notes,
        )

    @damage_checked
    def max_activations(self, indices: Sequence[int]) -> list[float]:
        """Largest activation of each feature on the index corpus; 0 for dead features."""
        return self.arrays.max_activations(indices).tolist()

    @damage_checked
    def first_position(self, index: int) -> int | None:
        """The first position of the corpus on which a feature fires; None if it never does."""
        start, end = self.arrays.latent_starts[index : index + 2]
        return int(self.arrays.latent_positions[start:end].min()) if end > start else None

    @damage_checked
    def top_tokens(self, latents: NDArray[Any], num: int) -> list[list[str]]:
        """Texts of up to `num` tokens with the highest F1 for each latent, best first."""
        chosen = self._details.top_tokens[latents, :num].tolist()
        return [[self.vocabulary.text(i) for i in ids if i != NO_TOKEN] for ids in chosen]

    @damage_checked
    def decoder_row(self, index: int) -> NDArray[np.float32]:
        """[d_in] the decoder row of a feature, from the index's SAE."""
        return open_decoder(self.folder / SAE)[index]

    @damage_checked
    def lookup(
        self,
        text: str,
        *,
        match: TokenMatch = "fold",
        exact_case: bool = False,
        rank: LookupRank = "f1",
        min_count: int = 5,
        limit: int = 20,
        labels: Labels | None = None,
    ) -> LookupResult:
        """The features associated with tokens, or with the occurrences of a text, best first.

        Only features that fire on at least `min_count` of the positions count. Raises `UserError`
        for empty text, and for a regular expression that is wrong or takes too long.
        """
        labels = labels or {}
        query = Query(text, match, exact_case)
        meaning = resolve(
            query,
            self.arrays,
            self.vocabulary,
            tokenizer=lambda: self._tokenizer,
            corpus=self._corpus_text,
        )
        count, associations = associate(self.arrays, meaning)
        best = associations.best(rank, min_count, limit)
        message = None
        if not best:
            message = why_nothing(query, meaning, count, min_count, self.num_tokens)
        in_text = meaning.text_hits
        is_misspelled = not count and match != "regex"
        spellings = similar_spellings(text, self.arrays, self.vocabulary) if is_misspelled else []
        return LookupResult(
            tokens=matched_tokens(meaning, self.arrays, self.vocabulary),
            features=[self._details.match(associations, place, labels) for place in best],
            total=associations.num_reaching(min_count),
            phrase=in_text is not None,
            count=count,
            occurrences=meaning.occurrences,
            places=self._contexts.text_places(in_text.positions) if in_text else [],
            message=message,
            suggestions=spellings,
            snapshot=self.step,
        )

    @property
    def special_ids(self) -> list[int]:
        """Tokens that stand for no text, such as BOS."""
        added = self._tokenizer.get_added_tokens_decoder()
        return [id_ for id_, token in added.items() if token.special]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.folder / TOKENIZER))

    def _corpus_text(self) -> CorpusText:
        return _texts.get(
            self.folder, self.manifest, lambda: CorpusText.of(self.arrays, self.special_ids)
        )


_VOCABULARY = (array_file("vocabulary_bytes"), array_file("vocabulary_offsets"))
_CORPUS = (array_file("token_ids"), array_file("row_starts"), array_file("text_breaks"))
_vocabularies: Shared[Vocabulary] = Shared(MAX_VOCABULARIES, *_VOCABULARY)
_texts: Shared[CorpusText] = Shared(MAX_TEXTS, *_VOCABULARY, *_CORPUS, TOKENIZER)
