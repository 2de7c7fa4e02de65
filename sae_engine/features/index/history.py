"""One feature over the snapshots of a run: how often it fired, and how its direction changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.features import FeatureHistory, FeatureMoment


def feature_history(snapshots: Sequence[FeatureIndex], index: int) -> FeatureHistory:
    """The history of a feature over snapshots, which are in the order of their steps.

    Raises `NoSuchFeatureError` and `IndexDamagedError`.
    """
    features = [snapshot.summary(index) for snapshot in snapshots]
    rows = [snapshot.decoder_row(index) for snapshot in snapshots]
    moments = [
        FeatureMoment(
            step=snapshot.step,
            tokens=snapshot.tokens,
            density=feature.density,
            max_activation=feature.max_activation,
            state=feature.state,
            decoder_cosine=_cosine(row, rows[-1]),
        )
        for snapshot, feature, row in zip(snapshots, features, rows, strict=True)
    ]
    fires = [moment.state != "dead" for moment in moments]
    born = died = None
    if any(fires):
        first, last = fires.index(True), len(fires) - 1 - fires[::-1].index(True)
        born = moments[first].step if first > 0 else None
        died = moments[last + 1].step if last + 1 < len(fires) else None
    return FeatureHistory(index=index, moments=moments, born_step=born, died_step=died)


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    length = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0
