"""How runs differ, and whether their features can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from safetensors import SafetensorError

from backend.store.configs import config_of
from backend.store.models import RunRow
from sae_engine.errors import cause_of
from sae_engine.features.geometry.files import width_of
from sae_engine.features.index.format import SAE, IndexDamagedError
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.analysis import BestValue, ConfigDifference
from sae_engine.schema.fields import differing_values
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries, Run


def setting_differences(runs: Sequence[Run]) -> list[ConfigDifference]:
    """The settings, except the name, in which the runs differ."""
    found = differing_values([run.settings for run in runs])
    return [ConfigDifference(field=field, values=values) for field, values in found.items()]


def best_values(curves: MetricsSeries) -> dict[str, BestValue]:
    """The best finite value of each metric that has a direction, and the first step with it.

    Downsampled curves give the same result, because they keep every extreme.
    """
    found: dict[str, BestValue] = {}
    for name, values in curves.series.items():
        better = METRICS[name].better if name in METRICS else ""
        measured = [
            (value if better == "lower" else -value, step)
            for step, value in zip(curves.step, values, strict=True)
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        if better and measured:
            value, step = min(measured)
            found[name] = BestValue(value=value if better == "lower" else -value, step=step)
    return found


def match_obstacle(rows: Sequence[RunRow], indexes: Sequence[FeatureIndex]) -> str | None:
    """Why the decoder rows of two runs cannot be matched; None if they can.

    Directions are comparable only within one language model. Layers and sites may differ, because
    all of them write to one residual stream. Raises `IndexDamagedError`.
    """
    models = [config_of(row).model.name for row in rows]
    if models[0] != models[1]:
        return (
            f"'{rows[0].name}' reads {models[0]} and '{rows[1].name}' reads {models[1]}; "
            "directions of different language models cannot be compared."
        )
    widths = [_width(index) for index in indexes]
    if widths[0] != widths[1]:
        return (
            f"'{rows[0].name}' reads activations of width {widths[0]} and '{rows[1].name}' of "
            f"width {widths[1]}; only decoder rows of one width can be compared."
        )
    return None


def _width(index: FeatureIndex) -> int:
    path = index.folder / SAE
    try:
        return width_of(path)
    except (OSError, SafetensorError) as error:
        raise IndexDamagedError(f"{path} cannot be read as an SAE ({cause_of(error)}).") from error
