"""What an index's arrays say of single features, in the shapes that travel over REST.

Read by `reader`, which answers the questions that lead here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sae_engine.errors import UserError
from sae_engine.features.index.contexts import ContextReader
from sae_engine.features.index.format import IndexArrays
from sae_engine.features.index.listing import NO_TOKEN, matching_state
from sae_engine.features.index.lookup import Statistics
from sae_engine.features.index.vocabulary import Vocabulary
from sae_engine.schema.features import (
    Density,
    Feature,
    FeatureRow,
    FeatureState,
    Histogram,
    Logits,
    Neighbour,
    TokenLogit,
    TokenStatistics,
)
from sae_engine.schema.lookup import FeatureMatch

NUM_TOP_TOKENS = 10
"""Top tokens of a feature's page, and those that a search looks through."""
NUM_ROW_TOKENS = 5
NUM_BINS = 40
EXAMPLE_WINDOW = 8


class NoSuchFeatureError(UserError):
    """The SAE has no feature of that index."""


class FeatureFacts:
    """Facts about the features of one index, `num_tokens` positions long."""

    def __init__(
        self,
        arrays: IndexArrays,
        num_tokens: int,
        vocabulary: Vocabulary,
        contexts: ContextReader,
    ) -> None:
        self._arrays = arrays
        self._num_tokens = num_tokens
        self._vocabulary = vocabulary
        self._contexts = contexts

    def of(self, index: int, labels: Mapping[int, str] | None = None) -> Feature:
        """What every list says of a feature; raises `NoSuchFeatureError`."""
        if not 0 <= index < len(self.fired):
            raise NoSuchFeatureError(
                f"There is no feature {index}; this SAE has features 0 to {len(self.fired) - 1}."
            )
        fired = int(self.fired[index])
        states: Sequence[FeatureState] = ("dead", "dense", "alive")
        return Feature(
            index=index,
            density=Density(fraction=fired / self._num_tokens, fired=fired, seen=self._num_tokens),
            max_activation=self.max_act(index),
            state=next(s for s in states if matching_state(self.fired[index], self._num_tokens, s)),
            label=(labels or {}).get(index) or None,
        )

    def row(self, index: int, labels: Mapping[int, str]) -> FeatureRow:
        """One feature as a list shows it."""
        top = self._best_tokens(index, NUM_ROW_TOKENS)
        return FeatureRow(
            **dict(self.of(index, labels)),
            example=self._contexts.example(index, EXAMPLE_WINDOW),
            top_tokens=[self._vocabulary.text(i) for i in top],
        )

    def match(self, statistics: Statistics, place: int, labels: Mapping[int, str]) -> FeatureMatch:
        index = int(statistics.latents[place])
        return FeatureMatch(
            index=index,
            **statistics.at(place),
            density=float(self.fired[index]) / self._num_tokens,
            label=labels.get(index) or None,
            example=self._contexts.example(index, EXAMPLE_WINDOW),
        )

    def histogram(self, index: int) -> Histogram:
        """Counts of activations in (low, high] between equally spaced edges from 0 to the max."""
        _, acts = self._contexts.activations(index)
        if not len(acts):
            return Histogram(edges=[], counts=[])
        edges = np.linspace(0, acts[0], NUM_BINS + 1)
        at_most = np.searchsorted(acts[::-1], edges, side="right")
        return Histogram(edges=edges.tolist(), counts=np.diff(at_most).tolist())

    def token_statistics(self, index: int) -> list[TokenStatistics]:
        return [self._pair(token, index) for token in self._best_tokens(index, NUM_TOP_TOKENS)]

    def _pair(self, token: int, index: int) -> TokenStatistics:
        """Statistics of a token and a latent that is active on it."""
        arrays = self._arrays
        start, end = arrays.pair_starts[token : token + 2]
        place = start + np.searchsorted(arrays.pair_latents[start:end], index)
        pair = slice(place, place + 1)
        statistics = Statistics.of(
            np.array([index]),
            arrays.pair_counts[pair].astype(np.int64),
            arrays.pair_sums[pair].astype(np.float64),
            arrays.pair_maxes[pair].astype(np.float64),
            group_count=int(self.token_counts[token]),
            fired=self.fired,
            num_tokens=self._num_tokens,
        )
        return TokenStatistics(id=token, text=self._vocabulary.text(token), **statistics.at(0))

    def logits(self, index: int) -> Logits | None:
        arrays = self._arrays

        def listed(ids: NDArray[np.uint32], values: NDArray[np.float32]) -> list[TokenLogit]:
            pairs = zip(ids[index].tolist(), values[index].tolist(), strict=True)
            return [TokenLogit(id=i, text=self._vocabulary.text(i), value=v) for i, v in pairs]

        if arrays.positive_logit_ids is None:
            return None
        assert arrays.positive_logits is not None
        assert arrays.negative_logit_ids is not None
        assert arrays.negative_logits is not None
        return Logits(
            positive=listed(arrays.positive_logit_ids, arrays.positive_logits),
            negative=listed(arrays.negative_logit_ids, arrays.negative_logits),
        )

    def neighbours(self, index: int, labels: Mapping[int, str]) -> list[Neighbour] | None:
        indices, cosines = self._arrays.neighbour_indices, self._arrays.neighbour_cosines
        if indices is None or cosines is None:
            return None
        pairs = zip(indices[index].tolist(), cosines[index].tolist(), strict=True)
        return [Neighbour(index=i, cosine=c, label=labels.get(i) or None) for i, c in pairs]

    def _best_tokens(self, index: int, num: int) -> list[int]:
        """Up to `num` tokens that go best with a latent, best first."""
        start, end = self._arrays.latent_token_starts[index : index + 2]
        return self._arrays.latent_tokens[start : min(end, start + num)].tolist()

    @cached_property
    def fired(self) -> NDArray[np.int64]:
        """[d_sae] on how many positions each latent is active."""
        return np.diff(self._arrays.latent_starts)

    @cached_property
    def token_counts(self) -> NDArray[np.int64]:
        return np.diff(self._arrays.token_starts)

    def max_act(self, index: int) -> float:
        """Activations of a latent are stored in descending order."""
        start, end = self._arrays.latent_starts[index : index + 2]
        return float(self._arrays.latent_acts[start]) if end > start else 0.0

    @cached_property
    def max_acts(self) -> NDArray[np.float32]:
        """[d_sae] largest activation of each latent, 0 for dead ones."""
        largest = np.zeros(len(self.fired), np.float32)
        alive = np.flatnonzero(self.fired)
        largest[alive] = self._arrays.latent_acts[self._arrays.latent_starts[alive]]
        return largest

    @cached_property
    def top_tokens(self) -> NDArray[np.int64]:
        """[d_sae, NUM_TOP_TOKENS] tokens with the best F1, filled with `NO_TOKEN`."""
        starts = self._arrays.latent_token_starts
        where = starts[:-1, None] + np.arange(NUM_TOP_TOKENS)
        exists = where < starts[1:, None]
        top = np.full(where.shape, NO_TOKEN, np.int64)
        top[exists] = self._arrays.latent_tokens[where[exists]]
        return top
