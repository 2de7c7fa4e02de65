"""Curves as Plotly figures: pure functions of a `MetricsSeries`.

A figure is what `plotly.graph_objects.Figure` takes, as plain data for the browser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from frontend.html.format import number
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries, MetricValue

Trace = dict[str, Any]


class Figure(TypedDict):
    """A chart as Plotly's JSON."""

    data: list[Trace]
    layout: dict[str, Any]


XAxis = Literal["step", "tokens", "time"]
X_TITLES: dict[XAxis, str] = {"step": "step", "tokens": "training tokens", "time": "seconds"}

TEAL, ORANGE, VIOLET, PINK, GREEN, GRAY = (
    "#12899b",
    "#e07a1f",
    "#7a6ff0",
    "#c2477f",
    "#5b8c3e",
    "#8a8f98",
)
RED = "#d6453d"

SPARSE_POINTS = 40
"""Up to so many points a curve shows its points and is not smoothed."""


class Panel(NamedTuple):
    """One chart: which metrics it shows together, first the ones measured most often."""

    title: str
    metrics: tuple[str, ...]
    colors: tuple[str, ...]
    logarithmic: bool = False
    """May be drawn on a logarithmic axis."""
    share: bool = False
    """Values are shares, shown in percent."""


PANELS: dict[str, Panel] = {
    "quality": Panel(
        "Loss and variance unexplained",
        ("loss", "fvu", "eval_fvu"),
        (GRAY, TEAL, ORANGE),
        logarithmic=True,
    ),
    "l0": Panel("Active latents per token (L0)", ("l0", "eval_l0"), (TEAL, ORANGE)),
    "dead": Panel("Dead latents", ("frac_dead",), (PINK,), share=True),
    "ce": Panel("Cross-entropy delta", ("ce_delta",), (VIOLET,), logarithmic=True),
    "lr": Panel("Learning rate", ("lr",), (GREEN,)),
    "throughput": Panel("Tokens per second", ("tokens_per_second",), (TEAL,)),
}


class Split(NamedTuple):
    """A series as it can be drawn: finite points, and where it was not finite."""

    x: list[float]
    y: list[float | None]
    """None breaks the line where a value was not finite."""
    broken_x: list[float]
    broken_names: list[str]


def split(x: Sequence[float], values: Sequence[MetricValue]) -> Split:
    """Leave out what was not measured; keep non-finite values as gaps with their names."""
    result = Split([], [], [], [])
    for position, value in zip(x, values, strict=True):
        if value is None:
            continue
        number_there = value if not isinstance(value, str) and math.isfinite(value) else None
        result.x.append(position)
        result.y.append(number_there)
        if number_there is None:
            result.broken_x.append(position)
            result.broken_names.append(number(value))
    return result


def smooth(values: Sequence[float | None], weight: float) -> list[float | None]:
    """Exponential moving average, debiased, starting anew after a gap; weight 0 changes nothing."""
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
    """Lay newly fetched points over those already held: by step, the new ones win."""
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


def has_values(data: MetricsSeries, panel: Panel) -> bool:
    """Whether any of the panel's metrics was measured at all."""
    return any(v is not None for name in panel.metrics for v in data.series.get(name, []))


def figure(
    data: MetricsSeries,
    panel: Panel,
    *,
    x_axis: XAxis = "step",
    log_x: bool = False,
    log_y: bool = False,
    smoothing: float = 0.0,
) -> Figure:
    """One chart of curves; zoom survives when it is drawn again with more points."""
    x = positions(data, x_axis)
    absent: list[MetricValue] = [None] * len(x)
    traces: list[Trace] = []
    for name, color in zip(panel.metrics, panel.colors, strict=True):
        points = split(x, data.series.get(name, absent))
        traces += curve(
            points, key=name, title=METRICS[name].title, color=color, smoothing=smoothing
        )
    layout = curve_layout(panel, x_axis, log_x=log_x, log_y=log_y and panel.logarithmic)
    return Figure(data=traces, layout=layout)


def positions(data: MetricsSeries, x_axis: XAxis) -> Sequence[float]:
    """Where each point stands on an axis."""
    return {"step": data.step, "tokens": data.tokens, "time": data.time}[x_axis]


def curve(data: Split, *, key: str, title: str, color: str, smoothing: float = 0.0) -> list[Trace]:
    """A curve and what goes with it: its raw points where it is smoothed, marks where it was not
    finite.
    """
    sparse = len(data.y) <= SPARSE_POINTS
    smoothed = smoothing > 0 and not sparse
    main: Trace = {
        "type": "scatter",
        "uid": key,
        "name": title,
        "x": data.x,
        "y": smooth(data.y, smoothing) if smoothed else data.y,
        "mode": "lines+markers" if sparse else "lines",
        "line": {"color": color, "width": 2},
        "marker": {"size": 5},
        "hovertemplate": "%{y:.4g}",
    }
    raw: Trace = {
        "type": "scatter",
        "uid": f"{key}-raw",
        "x": data.x,
        "y": data.y,
        "mode": "lines",
        "line": {"color": color, "width": 1},
        "opacity": 0.25,
        "hoverinfo": "skip",
        "showlegend": False,
    }
    broken: Trace = {
        "type": "scatter",
        "uid": f"{key}-broken",
        "name": f"{title} not finite",
        "x": data.broken_x,
        "y": [_base(data.y)] * len(data.broken_x),
        "text": data.broken_names,
        "mode": "markers",
        "marker": {"color": RED, "symbol": "x", "size": 9},
        "hovertemplate": "%{text}",
    }
    return [*([raw] if smoothed else []), main, *([broken] if data.broken_x else [])]


def _base(values: Sequence[float | None]) -> float:
    """A height that fits on a linear and on a logarithmic axis."""
    return min((v for v in values if v is not None and v > 0), default=1.0)


def curve_layout(panel: Panel, x_axis: XAxis, *, log_x: bool, log_y: bool) -> dict[str, Any]:
    """Axes, title and legend of a chart of curves."""
    axis = {"zeroline": False}
    return {
        "height": 250,
        "margin": {"l": 48, "r": 12, "t": 38, "b": 36},
        "title": {"text": panel.title, "x": 0, "y": 0.97, "yanchor": "top", "font": {"size": 14}},
        "hovermode": "x unified",
        "uirevision": f"{x_axis}-{log_x}-{log_y}",
        "showlegend": len(panel.metrics) > 1,
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        "xaxis": {
            **axis,
            "type": "log" if log_x else "linear",
            "title": {"text": X_TITLES[x_axis], "font": {"size": 11}},
        },
        "yaxis": {
            **axis,
            "type": "log" if log_y else "linear",
            "tickformat": ".1%" if panel.share else None,
            "autorangeoptions": {"include": [0.01]} if panel.share else {},
            "rangemode": "normal" if log_y else "tozero",
            "exponentformat": "power" if log_y else "SI",
        },
    }


def finite_values(values: Sequence[MetricValue]) -> list[float]:
    """Only the numbers of a series."""
    return [v for v in values if isinstance(v, int | float) and math.isfinite(v)]


def sparkline(values: Sequence[MetricValue], *, width: int = 120, height: int = 28) -> str:
    """A tiny curve as inline SVG of about 60 points; empty with fewer than two finite values."""
    finite = finite_values(values)
    head = f'<svg class="wb-spark" viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
    if len(finite) < 2:
        return f"{head}</svg>"
    stride = max(1, len(finite) // 60)
    points = finite[(len(finite) - 1) % stride :: stride]
    low, high = min(points), max(points)
    across = width / max(1, len(points) - 1)
    span = high / 2 - low / 2 or 1.0  # by halves: the whole may be beyond what a float holds
    path = " ".join(
        f"{i * across:.1f},{height - 2 - (height - 4) * ((value / 2 - low / 2) / span):.1f}"
        for i, value in enumerate(points)
    )
    return f'{head}<polyline points="{path}"/></svg>'
