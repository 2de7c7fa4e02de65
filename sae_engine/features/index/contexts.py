"""Contexts: parts of rows around a latent's activations, as readable text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.index.format import IndexArrays
from sae_engine.features.index.vocabulary import MAX_CHARACTER_BYTES, Vocabulary
from sae_engine.schema.features import Context, Interval
from sae_engine.schema.lookup import TextPlace

Window = int | Literal["full"]
"""Tokens shown on either side of the peak, or the whole row."""

FOLD_CANDIDATES = 1000
"""Strongest activations among which contexts with the same tokens are merged."""
INTERVAL_CANDIDATES = 40
INTERVAL_CONTEXTS = 5
TEXT_PLACES = 5
TEXT_WINDOW = 16


class _Place(NamedTuple):
    """A peak, and the bounds of the part of its row that is shown."""

    position: int
    start: int
    end: int
    copies: int


class ContextReader:
    """Cuts contexts out of an index."""

    def __init__(self, arrays: IndexArrays, vocabulary: Vocabulary) -> None:
        self._arrays = arrays
        self._vocabulary = vocabulary

    def strongest(self, latent: int, window: Window, num_contexts: int) -> list[Context]:
        """The strongest contexts of a latent; contexts with the same tokens are shown once.

        `copies` counts among the `FOLD_CANDIDATES` strongest activations.
        """
        positions, _ = self.activations(latent)
        found = self._folded(positions[:FOLD_CANDIDATES], window)[:num_contexts]
        return [self._cut(latent, place) for place in found]

    def around(self, latent: int, positions: NDArray[Any], window: Window) -> list[Context]:
        """Contexts around the given positions, in order; the same tokens are shown once."""
        return [self._cut(latent, place) for place in self._folded(positions, window)]

    def example(self, latent: int, window: Window) -> Context | None:
        """The strongest context of a latent, with 1 copy; None for a dead latent."""
        start, end = self._arrays.latent_starts[latent : latent + 2]
        positions = self._arrays.latent_positions[start : min(start + 1, end)]
        return next((self._cut(latent, place) for place in self._folded(positions, window)), None)

    def intervals(self, latent: int, window: Window, num_intervals: int) -> list[Interval]:
        """Equal slices (low, high] of (0, max], highest first, with evenly spaced contexts."""
        positions, acts = self.activations(latent)
        if not len(acts):
            return []
        edges = np.linspace(0, acts[0], num_intervals + 1)
        # Number of activations above each edge; acts are descending.
        above = len(acts) - np.searchsorted(acts[::-1], edges, side="right")
        intervals: list[Interval] = []
        for i in reversed(range(num_intervals)):
            inside = positions[above[i + 1] : above[i]]
            candidates = inside[evenly_spaced(len(inside), INTERVAL_CANDIDATES)]
            found = self._folded(candidates, window)
            chosen = evenly_spaced(len(found), INTERVAL_CONTEXTS)
            intervals.append(
                Interval(
                    low=float(edges[i]),
                    high=float(edges[i + 1]),
                    share=len(inside) / len(acts),
                    contexts=[self._cut(latent, found[c]) for c in chosen],
                )
            )
        return intervals

    def text_places(self, positions: NDArray[Any]) -> list[TextPlace]:
        """The text around up to `TEXT_PLACES` of the positions, evenly spaced."""
        chosen = positions[list(evenly_spaced(len(positions), TEXT_PLACES))]
        bounds = self._bounds(chosen, TEXT_WINDOW)
        rows = self._rows(chosen).tolist()
        return [
            TextPlace(
                tokens=self._tokens(row, start, end),
                last=position - start,
                position=position - int(self._arrays.row_starts[row]),
                row=row,
            )
            for position, (start, end), row in zip(chosen.tolist(), bounds, rows, strict=True)
        ]

    def activations(self, latent: int) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
        """Positions and activations of a latent, strongest first."""
        start, end = self._arrays.latent_starts[latent : latent + 2]
        acts = self._arrays.latent_acts[start:end].astype(np.float64)
        return self._arrays.latent_positions[start:end], acts * self._arrays.act_scale

    def _folded(self, positions: NDArray[np.uint32], window: Window) -> list[_Place]:
        """Contexts around positions, in order, merging those with the same tokens and peak."""
        found: dict[tuple[bytes, int], _Place] = {}
        for position, (start, end) in zip(
            positions.tolist(), self._bounds(positions, window), strict=True
        ):
            key = (self._arrays.token_ids[start:end].tobytes(), position - start)
            place = found.get(key, _Place(position, start, end, copies=0))
            found[key] = place._replace(copies=place.copies + 1)
        return list(found.values())

    def _rows(self, positions: NDArray[Any]) -> NDArray[np.int64]:
        return np.searchsorted(self._arrays.row_starts, positions, side="right") - 1

    def _bounds(self, positions: NDArray[np.uint32], window: Window) -> list[tuple[int, int]]:
        """Start and end of each context, clipped to its row."""
        rows = self._rows(positions)
        starts, ends = self._arrays.row_starts[rows], self._arrays.row_starts[rows + 1]
        if window != "full":
            where = positions.astype(np.int64)
            starts = np.maximum(starts, where - window)
            ends = np.minimum(ends, where + window + 1)
        return list(zip(starts.tolist(), ends.tolist(), strict=True))

    def _cut(self, latent: int, place: _Place) -> Context:
        position, start, end, copies = place
        row = int(self._rows(np.array([position]))[0])
        active = self._arrays.indices[start:end] == latent
        acts = np.where(active, self._arrays.acts[start:end], 0).max(axis=1).astype(np.float64)
        activations = (acts * self._arrays.act_scale).tolist()
        return Context(
            tokens=self._tokens(row, start, end),
            activations=activations,
            activation=activations[position - start],
            peak=position - start,
            position=position - int(self._arrays.row_starts[row]),
            row=row,
            copies=copies,
        )

    def _tokens(self, row: int, start: int, end: int) -> list[str]:
        """Texts of the tokens of a row from `start` to `end`."""
        row_start, row_end = self._arrays.row_starts[row : row + 2].tolist()
        # The window may cut a character; decode slightly more than is shown.
        first = max(row_start, start - MAX_CHARACTER_BYTES + 1)
        last = min(row_end, end + MAX_CHARACTER_BYTES - 1)
        window = self._vocabulary.window(self._arrays.token_ids[first:last])
        return window[start - first : end - first]


def evenly_spaced(length: int, count: int) -> Sequence[int]:
    """At most `count` distinct, evenly spaced numbers of `range(length)`, first to last."""
    if length <= count:
        return range(length)
    return np.linspace(0, length - 1, count).round().astype(int).tolist()
