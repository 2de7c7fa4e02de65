"""A run's curves as they travel: decimated so that no extreme is lost, non-finite values by
name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_engine.schema.runs import MetricsSeries, MetricValue

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def metrics_series(
    points: Sequence[Any], *, keys: Collection[str] = (), max_points: int | None = None
) -> MetricsSeries:
    """Curves of `points`, each (step, tokens, time, JSON of name to value).

    `keys` chooses the curves; none means all, in order of appearance. With more than `max_points`
    points, the first, the last and every curve's extremes and first non-finite value in equal
    stretches are kept, and evenly spaced ones as far as there is room.
    """
    values: list[dict[str, float]] = json.loads(f"[{','.join(point[3] for point in points)}]")
    names = list(keys) or list(dict.fromkeys(name for row in values for name in row))
    kept: Sequence[int] = range(len(points))
    if max_points is not None and len(points) > max_points:
        kept = _kept(values, names, max_points)
    return MetricsSeries(
        step=[points[i][0] for i in kept],
        tokens=[points[i][1] for i in kept],
        time=[points[i][2] for i in kept],
        series={name: [metric_value(values[i].get(name)) for i in kept] for name in names},
        total_points=len(points),
        returned_points=len(kept),
    )


def metric_value(value: float | None) -> MetricValue:
    """A value as JSON can carry it: NaN and infinities by name."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _kept(values: list[dict[str, float]], names: list[str], max_points: int) -> list[int]:
    """Ascending places of the points to keep; more than `max_points` only where one stretch needs
    more.
    """
    matrix = np.full((len(names), len(values)), np.nan)
    measured = np.zeros(matrix.shape, dtype=bool)
    for row, name in enumerate(names):
        places = [i for i, point in enumerate(values) if name in point]
        matrix[row, places] = [values[i][name] for i in places]
        measured[row, places] = True
    finite = np.isfinite(matrix)
    per_stretch = sum(2 + bool((measured[row] & ~finite[row]).any()) for row in range(len(names)))
    num_stretches = max(1, (max_points - 2) // max(1, per_stretch))
    edges = np.linspace(0, len(values), num_stretches + 1).astype(int)
    kept = {0, len(values) - 1}
    for start, end in pairwise(edges):
        if end > start:
            part = slice(start, end)
            kept |= _extremes(matrix[:, part], finite[:, part], measured[:, part], int(start))
    spare = max(0, max_points - len(kept))
    return sorted(kept.union(np.linspace(0, len(values) - 1, spare).astype(int).tolist()))


def _extremes(values: Floats, finite: Flags, measured: Flags, start: int) -> set[int]:
    """Places, counted from `start`, of each curve's least, largest and first non-finite value."""
    lows = np.where(finite, values, np.inf).argmin(axis=1)
    highs = np.where(finite, values, -np.inf).argmax(axis=1)
    strange = measured & ~finite
    has_finite, has_strange = finite.any(axis=1), strange.any(axis=1)
    places = (lows[has_finite], highs[has_finite], strange.argmax(axis=1)[has_strange])
    return {start + int(place) for place in np.concatenate(places)}
