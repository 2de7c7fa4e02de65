"""Contexts from which a label is proposed, and held-out contexts by which it is scored.

Both cover the feature's whole range of activations, because labels of the strongest activations
alone are often wrong for weaker ones (Paulo et al. 2024, section 3). The two sides share no text:
their contexts neither overlap nor have the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.index.contexts import ContextReader, evenly_spaced
from sae_engine.features.index.manifest import damage_checked
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.features import Context

Side = Literal["shown", "held_out"]

WINDOW = 16
"""Tokens on either side of a context's peak."""
NUM_INTERVALS = 5
CANDIDATES = 60
"""Strongest activations, and activations of each interval, that are considered."""
TOP: dict[Side, int] = {"shown": 10, "held_out": 5}
PER_INTERVAL: dict[Side, int] = {"shown": 2, "held_out": 3}
SILENT: dict[Side, int] = {"shown": 6, "held_out": 20}
SILENT_CANDIDATES = 400


@dataclass(frozen=True)
class Examples:
    """Shown and held-out contexts of one feature."""

    shown: list[Context]
    """Contexts on which it fires, from which a label is proposed; strongest first."""
    shown_silent: list[Context]
    """Contexts on which it never fires, for contrast."""
    held_out: list[Context]
    """Contexts on which it fires, to score the label."""
    held_out_silent: list[Context]
    """Contexts on which it never fires, to score the label."""


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
        """Deal contexts to the sides in the order of `turns`, `wanted` to each side."""
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


@damage_checked
def examples_of(index: FeatureIndex, feature: int, *, seed: int = 0) -> Examples:
    """Examples of one feature, fewer for rare features; deterministic for a seed.

    Raises `IndexDamagedError`.
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
    """Random positions of the whole corpus around which the feature does not fire."""
    drawn = rng.integers(0, index.num_tokens, SILENT_CANDIDATES)
    active = np.sort(positions.astype(np.int64))
    first = np.searchsorted(active, drawn - WINDOW)
    end = np.searchsorted(active, drawn + WINDOW, side="right")
    return drawn[first == end]
