"""One feature over the snapshots of a run: how often it fired, and how its direction settled.

Needs numpy and safetensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from sae_engine.features.index.format import SAE, IndexDamagedError
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.features import FeatureHistory, FeatureMoment


def feature_history(snapshots: Sequence[FeatureIndex], index: int) -> FeatureHistory:
    """What the snapshots, in the order of their steps, know about one feature.

    Raises `NoSuchFeatureError`, and `IndexDamagedError` naming a file that cannot be read.
    """
    facts = [snapshot.facts(index) for snapshot in snapshots]
    rows = [decoder_row(snapshot.folder, index) for snapshot in snapshots]
    moments = [
        FeatureMoment(
            step=snapshot.step,
            tokens=snapshot.tokens,
            density=fact.density,
            max_activation=fact.max_activation,
            state=fact.state,
            decoder_cosine=_cosine(row, rows[-1]),
        )
        for snapshot, fact, row in zip(snapshots, facts, rows, strict=True)
    ]
    fires = [moment.state != "dead" for moment in moments]
    born = died = None
    if any(fires):
        first, last = fires.index(True), len(fires) - 1 - fires[::-1].index(True)
        born = moments[first].step if first > 0 else None
        died = moments[last + 1].step if last + 1 < len(fires) else None
    return FeatureHistory(index=index, moments=moments, born_step=born, died_step=died)


def decoder_row(folder: Path, index: int) -> NDArray[np.float32]:
    """[d_in] the decoder row of a latent, from an index folder's own SAE."""
    path = folder / SAE
    try:
        with safe_open(path, framework="numpy") as file:
            return file.get_slice("W_dec")[index]
    except (OSError, SafetensorError) as error:
        raise IndexDamagedError(f"{path} cannot be read as an SAE ({error}).") from error


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    length = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0
