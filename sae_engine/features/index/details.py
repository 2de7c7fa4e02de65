"""What an index knows about single features, in REST shapes. Used by `reader`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_engine.errors import UserError
from sae_engine.features.index.associations import Associations
from sae_engine.features.index.clarity import Groups, clarity
from sae_engine.features.index.contexts import ContextReader
from sae_engine.features.index.format import IndexArrays
from sae_engine.features.index.listing import is_in_state, top_token_ids
from sae_engine.features.index.vocabulary import Vocabulary
from sae_engine.schema.features import (
    CLEAR,
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
"""Top tokens on a feature's page; the search of the list covers them too."""
NUM_ROW_TOKENS = 5
NUM_BINS = 40
EXAMPLE_WINDOW = 8

Labels = Mapping[int, str]
Stars = Collection[int]
"""Starred features."""


class NoSuchFeatureError(UserError):
    """The SAE has no feature with that index."""


class FeatureDetails:
    """Everything about the features of one index, one feature at a time."""

    def __init__(
        self, arrays: IndexArrays, vocabulary: Vocabulary, contexts: ContextReader
    ) -> None:
        self._arrays = arrays
        self._vocabulary = vocabulary
        self._contexts = contexts

    def feature(self, index: int, labels: Labels, stars: Stars = ()) -> Feature:
        """Raises `NoSuchFeatureError`."""
        if not 0 <= index < self._arrays.d_sae:
            raise NoSuchFeatureError(
                f"There is no feature {index}; this SAE has features 0 to {self._arrays.d_sae - 1}."
            )
        fired, seen = self._arrays.fired[index], self._arrays.num_tokens
        states: Sequence[FeatureState] = ("dead", "dense", "alive")
        return Feature(
            index=index,
            density=Density(fraction=self._density(index), fired=int(fired), seen=seen),
            max_activation=float(self._arrays.max_activations([index])[0]),
            state=next(state for state in states if is_in_state(fired, seen, state)),
            label=labels.get(index) or None,
            starred=index in stars,
            **self._clarity_of(index),
        )

    def row(self, index: int, labels: Labels, stars: Stars = ()) -> FeatureRow:
        """A feature in a list."""
        return FeatureRow(
            **dict(self.feature(index, labels, stars)),
            example=self._contexts.example(index, EXAMPLE_WINDOW),
            top_tokens=self._top_texts(index),
        )

    def match(self, associations: Associations, place: int, labels: Labels) -> FeatureMatch:
        """A feature found by a lookup."""
        index = int(associations.latents[place])
        return FeatureMatch(
            index=index,
            **associations.at(place),
            density=self._density(index),
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
        """Statistics of the feature's top tokens, best first."""
        return [self._pair(token, index) for token in self._best_tokens(index, NUM_TOP_TOKENS)]

    def _pair(self, token: int, index: int) -> TokenStatistics:
        """Statistics of a token and a latent that is active on it."""
        start, end = self._arrays.pair_starts[token : token + 2]
        place = start + np.searchsorted(self._arrays.pair_latents[start:end], index)
        pair = Associations.of_pairs(self._arrays, token, slice(place, place + 1))
        return TokenStatistics(id=token, text=self._vocabulary.text(token), **pair.at(0))

    def logits(self, index: int) -> Logits | None:
        """The tokens whose logits the feature raises and lowers most; None if not final."""
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

    def neighbours(self, index: int, labels: Labels, stars: Stars = ()) -> list[Neighbour] | None:
        """The features with the nearest decoder rows; None if not final."""
        indices, cosines = self._arrays.neighbour_indices, self._arrays.neighbour_cosines
        if indices is None or cosines is None:
            return None
        pairs = zip(indices[index].tolist(), cosines[index].tolist(), strict=True)
        return [
            Neighbour(
                index=i,
                cosine=c,
                label=labels.get(i) or None,
                starred=i in stars,
                top_tokens=self._top_texts(i),
            )
            for i, c in pairs
        ]

    @cached_property
    def top_tokens(self) -> NDArray[np.int64]:
        """[d_sae, NUM_TOP_TOKENS] tokens with the highest F1, padded with `NO_TOKEN`."""
        return top_token_ids(self._arrays, NUM_TOP_TOKENS)

    @cached_property
    def clarity(self) -> NDArray[np.float64]:
        """[d_sae] how well one word describes each latent."""
        latents = np.arange(self._arrays.d_sae)
        return clarity(self._arrays, self._groups, latents, self.top_tokens).values

    @cached_property
    def _groups(self) -> Groups:
        return Groups(self._arrays, self._vocabulary)

    def _clarity_of(self, index: int) -> dict[str, Any]:
        latents = np.array([index])
        found = clarity(self._arrays, self._groups, latents, self.top_tokens[latents])
        value = float(found.values[0])
        name = self._vocabulary.text(int(found.tokens[0])) if value >= CLEAR else None
        return {"clarity": value, "name": name and (name.strip() or name)}

    def _top_texts(self, index: int) -> list[str]:
        """The top tokens that a list shows with a feature."""
        return [self._vocabulary.text(i) for i in self._best_tokens(index, NUM_ROW_TOKENS)]

    def _density(self, index: int) -> float:
        return float(self._arrays.fired[index]) / self._arrays.num_tokens

    def _best_tokens(self, index: int, num: int) -> list[int]:
        """Up to `num` tokens with the highest F1, best first."""
        start, end = self._arrays.latent_token_starts[index : index + 2]
        return self._arrays.latent_tokens[start : min(end, start + num)].tolist()
