"""Converts stored metrics to `MetricsSeries`: downsampled without losing an extreme, with
non-finite values as strings.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from backend.store.metric_points import Curve, Flags, Floats, Points
from sae_engine.schema.runs import MetricsSeries, MetricValue

Places = NDArray[np.intp]


def metrics_series(
    points: Points, *, keys: Collection[str] = (), max_points: int | None = None
) -> MetricsSeries:
    """The REST shape of `points`.

    `keys` selects curves; empty means all, in order of appearance. If there are more than
    `max_points` points, the steps are divided into equal stretches. The first point, the last, and
    in each stretch every curve's minimum, maximum and first non-finite value are kept; evenly
    spaced points fill the rest of `max_points`.
    """
    names = list(keys) or list(points.curves)
    total = len(points)
    absent = Curve(np.full(total, np.nan), np.zeros(total, np.bool_))
    curves = {name: points.curves.get(name, absent) for name in names}
    kept = np.arange(total)
    if max_points is not None and total > max_points:
        kept = _kept(list(curves.values()), total, max_points)
    return MetricsSeries(
        step=points.step[kept].tolist(),
        tokens=points.tokens[kept].tolist(),
        time=points.time[kept].tolist(),
        series={name: _metric_values(curve, kept) for name, curve in curves.items()},
        total_points=total,
        returned_points=len(kept),
    )


def _metric_values(curve: Curve, kept: Places) -> list[MetricValue]:
    values: list[MetricValue] = curve.values[kept].tolist()
    measured = curve.measured[kept]
    for place in np.flatnonzero(~np.isfinite(curve.values[kept])).tolist():
        value = values[place]
        assert isinstance(value, float)
        values[place] = metric_value(value) if measured[place] else None
    return values


def metric_value(value: float | None) -> MetricValue:
    """A value in JSON: NaN and infinities as strings."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _kept(curves: Sequence[Curve], total: int, max_points: int) -> Places:
    """Ascending places of the points to keep: at most `max_points`, or what one stretch needs."""
    shape = (len(curves), total)
    values = np.array([curve.values for curve in curves], np.float64).reshape(shape)
    measured = np.array([curve.measured for curve in curves], np.bool_).reshape(shape)
    finite = np.isfinite(values)
    strange = measured & ~finite
    per_stretch = 2 * len(curves) + int(strange.any(axis=1).sum())
    num_stretches = max(1, (max_points - 2) // max(1, per_stretch))
    edges = np.linspace(0, total, num_stretches + 1).astype(int)
    kept = {0, total - 1}
    for start, end in pairwise(edges.tolist()):
        if end > start:
            part = slice(start, end)
            kept |= _extremes(values[:, part], finite[:, part], strange[:, part], start)
    spare = max(0, max_points - len(kept))
    kept.update(np.linspace(0, total - 1, spare).astype(int).tolist())
    return np.array(sorted(kept), np.intp)


def _extremes(values: Floats, finite: Flags, strange: Flags, start: int) -> set[int]:
    """Places of each curve's minimum, maximum and first non-finite value, plus `start`."""
    lows = np.where(finite, values, np.inf).argmin(axis=1)
    highs = np.where(finite, values, -np.inf).argmax(axis=1)
    has_finite, has_strange = finite.any(axis=1), strange.any(axis=1)
    places = (lows[has_finite], highs[has_finite], strange.argmax(axis=1)[has_strange])
    return set((start + np.concatenate(places)).tolist())
