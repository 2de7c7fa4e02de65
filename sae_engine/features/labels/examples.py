"""Contexts that a label is proposed from, and others that it is judged by.

Both come from all over the feature's range, since what holds for its strongest activations alone
often fails below (Paulo et al. 2024, section 3). No text is on both sides: two contexts of
different sides never overlap, nor have the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.index.contexts import ContextReader, evenly_spaced
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.features import Context

Side = Literal["shown", "held_out"]

WINDOW = 16
"""Tokens on either side of a context's peak."""
NUM_INTERVALS = 5
CANDIDATES = 60
"""Activations of the top and of each interval that are looked at."""
TOP: dict[Side, int] = {"shown": 10, "held_out": 5}
PER_INTERVAL: dict[Side, int] = {"shown": 2, "held_out": 3}
SILENT: dict[Side, int] = {"shown": 6, "held_out": 20}
SILENT_CANDIDATES = 400


@dataclass(frozen=True)
class Examples:
    """Contexts of one feature, on two sides."""

    shown: list[Context]
    """On which it fires, to propose a label from; the strongest first."""
    shown_silent: list[Context]
    """On which it never fires, to tell it from what is common anyway."""
    held_out: list[Context]
    held_out_silent: list[Context]


class _Deal:
    """Deals contexts to two sides that must not share text."""

    def __init__(self, row_starts: NDArray[np.int64]) -> None:
        self.sides: dict[Side, list[Context]] = {"shown": [], "held_out": []}
        self._row_starts = row_starts
        self._places: dict[Side, list[int]] = {"shown": [], "held_out": []}
        self._texts: set[tuple[str, ...]] = set()

    def deal(
        self, contexts: Iterable[Context], wanted: dict[Side, int], turns: Sequence[Side]
    ) -> None:
        """Give contexts to the sides in turns, until each has as many more as wanted."""
        missing = dict(wanted)
        turn = cycle(turns)
        side: Side = next(turn)
        for context in contexts:
            if not any(missing.values()):
                return
            if not missing[side]:
                side = next(other for other in missing if missing[other])
            if self._give(context, side):
                missing[side] -= 1
                side = next(turn)

    def _give(self, context: Context, side: Side) -> bool:
        place = int(self._row_starts[context.row]) + context.position
        text = tuple(context.tokens)
        others = self._places["held_out" if side == "shown" else "shown"]
        if text in self._texts or any(abs(place - other) <= 2 * WINDOW for other in others):
            return False
        self.sides[side].append(context)
        self._places[side].append(place)
        self._texts.add(text)
        return True


def examples_of(index: FeatureIndex, feature: int, *, seed: int = 0) -> Examples:
    """Examples of one feature; there are fewer of those that fire seldom, and the same for the
    same seed.
    """
    arrays = index.arrays
    reader = ContextReader(arrays, index.vocabulary)
    positions, acts = reader.activations(feature)
    deal = _Deal(arrays.row_starts)
    top = reader.around(feature, positions[:CANDIDATES], WINDOW)
    deal.deal(top, TOP, ("shown", "shown", "held_out"))
    edges = np.linspace(0, acts[0], NUM_INTERVALS + 1) if len(acts) else np.zeros(0)
    for low, high in reversed(list(pairwise(edges))):
        inside = positions[(acts > low) & (acts <= high)]
        some = inside[list(evenly_spaced(len(inside), CANDIDATES))]
        chosen = np.random.default_rng([seed, feature]).permutation(some)
        contexts = reader.around(feature, chosen, WINDOW)
        deal.deal(contexts, PER_INTERVAL, ("held_out", "shown"))
    silent = _Deal(arrays.row_starts)
    candidates = _silent_positions(index, positions, np.random.default_rng([seed, feature, 1]))
    contexts = reader.around(feature, candidates, WINDOW)
    silent.deal(contexts, SILENT, ("shown", "held_out", "held_out"))
    return Examples(
        shown=deal.sides["shown"],
        shown_silent=silent.sides["shown"],
        held_out=deal.sides["held_out"],
        held_out_silent=silent.sides["held_out"],
    )


def _silent_positions(
    index: FeatureIndex, positions: NDArray[np.uint32], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Random positions around which the feature does not fire, drawn from the whole corpus."""
    drawn = rng.integers(0, index.num_tokens, SILENT_CANDIDATES)
    active = np.sort(positions.astype(np.int64))
    first = np.searchsorted(active, drawn - WINDOW)
    end = np.searchsorted(active, drawn + WINDOW, side="right")
    return drawn[first == end]
