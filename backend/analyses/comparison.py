"""What can be compared between runs, and in what they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backend.store.configs import config_of
from backend.store.models import RunRow
from sae_engine.features.geometry.files import width_of
from sae_engine.features.index.format import SAE
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.schema.analysis import BestValue, ConfigDifference
from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import differing
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries


def config_differences(configs: Sequence[RunConfig]) -> list[ConfigDifference]:
    """Fields in which not all configurations agree; a run's name is not one."""
    return [
        ConfigDifference(field=field, values=values) for field, values in differing(configs).items()
    ]


def best_values(curves: MetricsSeries) -> dict[str, BestValue]:
    """The best finite value of each metric that has one, at the first step that reached it.

    Thinned curves do as well as whole ones: they keep every extreme.
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


def why_not_matched(rows: Sequence[RunRow], indexes: Sequence[FeatureIndex]) -> str | None:
    """Why the decoder rows of two SAEs cannot be matched; None if they can.

    Directions mean the same only in one language model's activations. Different layers and sites of
    it may be matched: all write into one residual stream.
    """
    models = [config_of(row).model.name for row in rows]
    if models[0] != models[1]:
        return (
            f"'{rows[0].name}' reads {models[0]} and '{rows[1].name}' reads {models[1]}; the "
            "directions of different language models have nothing to do with each other."
        )
    widths = [width_of(index.folder / SAE) for index in indexes]
    if widths[0] != widths[1]:
        return (
            f"'{rows[0].name}' reads activations of width {widths[0]} and '{rows[1].name}' of "
            f"width {widths[1]}; only decoder rows of one width can be matched."
        )
    return None
