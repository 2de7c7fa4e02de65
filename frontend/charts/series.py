"""A run's `MetricsSeries` prepared for drawing: increments merged, gaps, smoothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from frontend.html.format import number
from sae_engine.schema.runs import MetricsSeries, MetricValue

XAxis = Literal["step", "tokens", "time"]
X_TITLES: dict[XAxis, str] = {"step": "step", "tokens": "training tokens", "time": "seconds"}
X_HEADS: dict[XAxis, str] = {
    "step": "step %{x:,}",
    "tokens": "%{x:,} tokens",
    "time": "%{x:,.1f} s",
}
"""Of a tooltip."""


class Points(NamedTuple):
    """One metric's measured points, and those that are not finite."""

    x: list[float]
    y: list[float | None]
    """None breaks the line at a value that is not finite."""
    broken_x: list[float]
    broken_names: list[str]


def points_of(data: MetricsSeries, metric: str, x_axis: XAxis) -> Points:
    """The points of a metric over an axis; steps without a measurement are left out."""
    return split(positions(data, x_axis), data.series.get(metric, [None] * len(data.step)))


def positions(data: MetricsSeries, x_axis: XAxis) -> Sequence[float]:
    """Where each point lies on an axis."""
    return {"step": data.step, "tokens": data.tokens, "time": data.time}[x_axis]


def split(x: Sequence[float], values: Sequence[MetricValue]) -> Points:
    """Leave out what was not measured; keep non-finite values as gaps with their names."""
    points = Points([], [], [], [])
    for position, value in zip(x, values, strict=True):
        if value is None:
            continue
        finite = value if not isinstance(value, str) and math.isfinite(value) else None
        points.x.append(position)
        points.y.append(finite)
        if finite is None:
            points.broken_x.append(position)
            points.broken_names.append(number(value))
    return points


def smooth(values: Sequence[float | None], weight: float) -> list[float | None]:
    """Debiased exponential moving average that restarts after a gap; weight 0 changes nothing."""
    if weight <= 0:
        return list(values)
    smoothed: list[float | None] = []
    average, mass = 0.0, 0.0
    for value in values:
        if value is None:
            average, mass = 0.0, 0.0
            smoothed.append(None)
            continue
        average = weight * average + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        smoothed.append(average / mass)
    return smoothed


def merged(old: MetricsSeries | None, new: MetricsSeries) -> MetricsSeries:
    """Add newly fetched points to earlier ones; at the same step the new ones win."""
    if old is None or not new.step:
        return new if old is None else old
    kept = [i for i, step in enumerate(old.step) if step < new.step[0]]
    series: dict[str, list[MetricValue]] = {}
    for name in dict.fromkeys([*old.series, *new.series]):
        before = old.series.get(name, [None] * len(old.step))
        series[name] = [before[i] for i in kept]
        series[name] += new.series.get(name, [None] * len(new.step))
    num_points = len(kept) + len(new.step)
    return MetricsSeries(
        step=[old.step[i] for i in kept] + new.step,
        tokens=[old.tokens[i] for i in kept] + new.tokens,
        time=[old.time[i] for i in kept] + new.time,
        series=series,
        total_points=old.total_points - len(old.step) + num_points,
        returned_points=num_points,
    )


def measured_in(curves: Iterable[MetricsSeries]) -> set[str]:
    """Names of the metrics that were measured in any of the curves."""
    return {
        name
        for data in curves
        for name, values in data.series.items()
        if any(value is not None for value in values)
    }


def finite_values(values: Sequence[MetricValue]) -> list[float]:
    """Only the finite numbers of a series."""
    return [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
