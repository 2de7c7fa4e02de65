"""One feature over the snapshots of a run: how often it fired, and how its direction changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.index.format import IndexDamagedError
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.features import Feature, FeatureHistory, FeatureMoment


def feature_history(
    snapshots: Sequence[FeatureIndex], index: int, missing_steps: Sequence[int] = ()
) -> FeatureHistory:
    """The history of a feature over snapshots, which are in the order of their steps, without the
    missing ones and those that are damaged.

    Raises `NoSuchFeatureError`, and `IndexDamagedError` if all are damaged.
    """
    missing = list(missing_steps)
    readable: list[tuple[FeatureIndex, Feature, NDArray[np.float32]]] = []
    first_positions: list[int | None] = []
    for snapshot in snapshots:
        try:
            found = (snapshot, snapshot.summary(index), snapshot.decoder_row(index))
            first_positions.append(snapshot.first_position(index))
            readable.append(found)
        except IndexDamagedError:
            if snapshot is snapshots[-1] and not readable:
                raise
            missing.append(snapshot.step)
    last_row = readable[-1][2]
    moments = [
        FeatureMoment(
            step=snapshot.step,
            tokens=snapshot.tokens,
            density=feature.density,
            max_activation=feature.max_activation,
            state=feature.state,
            decoder_cosine=_cosine(row, last_row),
        )
        for snapshot, feature, row in readable
    ]
    # The final index covers more text, on which a rare feature would seem to begin.
    in_all = min(snapshot.num_tokens for snapshot, _, _ in readable)
    fires = [first is not None and first < in_all for first in first_positions]
    born = died = None
    if any(fires):
        first, last = fires.index(True), len(fires) - 1 - fires[::-1].index(True)
        born = moments[first].step if first > 0 else None
        died = moments[last + 1].step if last + 1 < len(fires) else None
    return FeatureHistory(
        index=index,
        moments=moments,
        born_step=born,
        died_step=died,
        missing_steps=sorted(missing),
    )


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    length = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0
