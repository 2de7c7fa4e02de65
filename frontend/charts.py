"""Curves as Plotly figures: pure functions of a `MetricsSeries`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go

from frontend.words import number
from sae_engine.schema.api import Histogram, MetricsSeries, MetricValue
from sae_engine.schema.records import METRICS

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
        finite = not isinstance(value, str) and math.isfinite(value)
        result.x.append(position)
        result.y.append(value if finite and not isinstance(value, str) else None)
        if not finite:
            result.broken_x.append(position)
            result.broken_names.append(number(value))
    return result


def smooth(values: Sequence[float | None], weight: float) -> list[float | None]:
    """Exponential moving average, debiased, that starts anew after a gap; weight 0 changes nothing."""
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
    names = list(dict.fromkeys([*old.series, *new.series]))
    absent_old: list[MetricValue] = [None] * len(old.step)
    absent_new: list[MetricValue] = [None] * len(new.step)
    return MetricsSeries(
        step=[old.step[i] for i in kept] + new.step,
        tokens=[old.tokens[i] for i in kept] + new.tokens,
        time=[old.time[i] for i in kept] + new.time,
        series={
            name: [old.series.get(name, absent_old)[i] for i in kept]
            + new.series.get(name, absent_new)
            for name in names
        },
        total_points=max(new.total_points, len(kept) + len(new.step)),
        returned_points=len(kept) + len(new.step),
    )


def has_values(data: MetricsSeries, panel: Panel) -> bool:
    """Whether any of the panel's metrics was measured at all."""
    return any(v is not None for name in panel.metrics for v in data.series.get(name, []))


def figure(
    data: MetricsSeries,
    panel: Panel,
    *,
    x_axis: XAxis = "step",
    log_y: bool = False,
    smoothing: float = 0.0,
) -> go.Figure:
    """One chart of curves; zoom survives when it is drawn again with more points."""
    x: Sequence[float] = {"step": data.step, "tokens": data.tokens, "time": data.time}[x_axis]
    result = go.Figure()
    for name, color in zip(panel.metrics, panel.colors, strict=True):
        for trace in _traces(
            name, color, split(x, data.series.get(name, [None] * len(x))), smoothing
        ):
            result.add_trace(trace)
    result.update_layout(**_layout(panel, x_axis, log_y and panel.logarithmic))
    return result


def _traces(name: str, color: str, data: Split, smoothing: float) -> list[go.Scatter]:
    title = METRICS[name].title
    sparse = len(data.y) <= 40
    traces: list[go.Scatter] = []
    if smoothing > 0 and not sparse:
        traces.append(
            go.Scatter(
                x=data.x,
                y=data.y,
                mode="lines",
                line={"color": color, "width": 1},
                opacity=0.25,
                hoverinfo="skip",
                showlegend=False,
                name=f"{title} raw",
                uid=f"{name}-raw",
            )  # fmt: skip
        )
    y = data.y if sparse else smooth(data.y, smoothing)
    traces.append(
        go.Scatter(
            x=data.x,
            y=y,
            name=title,
            uid=name,
            mode="lines+markers" if sparse else "lines",
            line={"color": color, "width": 2},
            marker={"size": 5},
            connectgaps=False,
            hovertemplate="%{y:.4g}",
        )  # fmt: skip
    )
    if data.broken_x:
        finite = [v for v in data.y if v is not None and v > 0]
        base = min(finite, default=1.0)
        traces.append(
            go.Scatter(
                x=data.broken_x,
                y=[base] * len(data.broken_x),
                text=data.broken_names,
                name=f"{title} not finite",
                uid=f"{name}-broken",
                mode="markers",
                marker={"color": RED, "symbol": "x", "size": 9},
                hovertemplate="%{text}",
            )  # fmt: skip
        )
    return traces


def _layout(panel: Panel, x_axis: XAxis, log_y: bool) -> dict[str, Any]:
    axis = {"showgrid": True, "gridcolor": "rgba(128,128,128,.16)", "zeroline": False}
    return {
        "height": 260,
        "margin": {"l": 48, "r": 12, "t": 8, "b": 34},
        "hovermode": "x unified",
        "uirevision": f"{x_axis}-{log_y}",
        "showlegend": len(panel.metrics) > 1,
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 12}},
        "xaxis": {**axis, "title": {"text": X_TITLES[x_axis], "font": {"size": 11}}},
        "yaxis": {
            **axis,
            "type": "log" if log_y else "linear",
            "tickformat": ".1%" if panel.share else None,
            "rangemode": "normal" if log_y else "tozero",
            "exponentformat": "power" if log_y else "SI",
        },
    }


def histogram_figure(histogram: Histogram, *, height: int = 190) -> go.Figure:
    """A feature's positive activations, counted between edges."""
    edges = histogram.edges
    centers = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    widths = [high - low for low, high in zip(edges, edges[1:], strict=False)]
    ranges = [f"{low:.2f} – {high:.2f}" for low, high in zip(edges, edges[1:], strict=False)]
    bars = go.Bar(
        x=centers, y=histogram.counts, width=widths, customdata=ranges,
        marker={"color": TEAL, "line": {"width": 0}},
        hovertemplate="%{customdata}: %{y:,} tokens<extra></extra>",
    )  # fmt: skip
    result = go.Figure(bars)
    result.update_layout(
        height=height,
        margin={"l": 44, "r": 8, "t": 8, "b": 30},
        bargap=0.04,
        showlegend=False,
        xaxis={"showgrid": False, "title": {"text": "activation", "font": {"size": 11}}},
        yaxis={
            "gridcolor": "rgba(128,128,128,.16)",
            "title": {"text": "tokens", "font": {"size": 11}},
        },
    )
    return result


def sparkline(values: Sequence[MetricValue], *, width: int = 120, height: int = 28) -> str:
    """A tiny curve as inline SVG, at most 60 points; empty with fewer than two finite values."""
    finite = [
        float(v) for v in values if v is not None and not isinstance(v, str) and math.isfinite(v)
    ]
    if len(finite) < 2:
        return f'<svg class="wb-spark" viewBox="0 0 {width} {height}"></svg>'
    stride = max(1, len(finite) // 60)
    points = finite[::stride]
    if points[-1] != finite[-1] or len(points) < 2:
        points.append(finite[-1])
    low, high = min(points), max(points)
    span = (high - low) or 1.0
    across = width / (len(points) - 1)
    path = " ".join(
        f"{i * across:.1f},{2 + (height - 4) * (1 - (value - low) / span):.1f}"
        for i, value in enumerate(points)
    )
    return (
        f'<svg class="wb-spark" viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
        f'<polyline points="{path}"/></svg>'
    )
