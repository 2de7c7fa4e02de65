"""Curves of one run as Plotly figures: pure functions of a `MetricsSeries`."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from frontend.charts.figure import (
    GRAY,
    GREEN,
    LEGEND_ABOVE,
    ORANGE,
    PINK,
    RED,
    TEAL,
    VIOLET,
    Figure,
    Trace,
    axis_title,
    margin,
)
from frontend.charts.series import X_HEADS, X_TITLES, Points, XAxis, points_of, positions, smooth
from frontend.html.format import is_share
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries

SPARSE_POINTS = 40
"""Curves of up to this many points show their points and are not smoothed."""

AXIS_SPACE = 0.02
"""Share of an x axis that is left free at either end."""

LOGARITHMIC = frozenset({"loss", "fvu", "eval_fvu", "ce_delta"})
"""Metrics that may be drawn on a logarithmic axis."""


class CurveView(NamedTuple):
    """How curves are drawn."""

    x_axis: XAxis = "step"
    log_x: bool = False
    log_y: bool = False
    """For panels that allow it."""
    smoothing: float = 0.0
    """Weight of earlier values, below 1; 0 leaves curves unchanged."""


class Panel(NamedTuple):
    """One chart: the metrics it shows together, the most frequently measured first."""

    metrics: tuple[str, ...]
    colors: tuple[str, ...] = (TEAL,)
    title: str = ""
    """Needed where there are several metrics."""

    @property
    def heading(self) -> str:
        """The chart's title, by default its metric's."""
        return self.title or METRICS[self.metrics[0]].title

    @property
    def logarithmic(self) -> bool:
        """Whether it may have a logarithmic axis."""
        return LOGARITHMIC.issuperset(self.metrics)


PANELS = (
    Panel(("loss", "fvu", "eval_fvu"), (GRAY, TEAL, ORANGE), "Loss and FVU"),
    Panel(("l0", "eval_l0"), (TEAL, ORANGE), "Active latents per token (L0)"),
    Panel(("frac_dead",), (PINK,)),
    Panel(("ce_delta",), (VIOLET,)),
    Panel(("lr",), (GREEN,)),
    Panel(("tokens_per_second",)),
)
"""The charts that a run's page shows first."""


SYSTEM = ("cpu_share", "memory_gib", "gpu_share", "gpu_memory_gib")
"""Metrics of the process and of its GPU."""


class RunPanels(NamedTuple):
    """The charts of a run."""

    first: list[Panel]
    more: list[Panel]
    system: list[Panel]


def run_panels(measured: Collection[str]) -> RunPanels:
    """Those of `PANELS`, those of `SYSTEM`, and one for each other metric that was measured."""
    first = [panel for panel in PANELS if not set(panel.metrics).isdisjoint(measured)]
    shown = {name for panel in PANELS for name in panel.metrics} | set(SYSTEM)
    more = [Panel((name,)) for name in METRICS if name in measured and name not in shown]
    return RunPanels(first, more, [Panel((name,)) for name in SYSTEM if name in measured])


def figure(data: MetricsSeries, panel: Panel, view: CurveView) -> Figure:
    """One chart of curves; its zoom survives when it is drawn again with more points."""
    traces = [
        trace
        for name, color in zip(panel.metrics, panel.colors, strict=True)
        for trace in curve(
            points_of(data, name, view.x_axis),
            key=name,
            title=METRICS[name].title,
            color=color,
            smoothing=view.smoothing,
            share=is_share(name),
        )
    ]
    return Figure(data=traces, layout=curve_layout(panel, view, [data]))


def curve(
    points: Points,
    *,
    key: str,
    title: str,
    color: str,
    smoothing: float = 0.0,
    share: bool = False,
) -> list[Trace]:
    """A curve, its raw points where it is smoothed, and marks where it is not finite.

    A `share` is shown in percent.
    """
    sparse = len(points.y) <= SPARSE_POINTS
    smoothed = smoothing > 0 and not sparse
    main: Trace = {
        "type": "scatter",
        "uid": key,
        "name": title,
        "x": points.x,
        "y": smooth(points.y, smoothing) if smoothed else points.y,
        "mode": "lines+markers" if sparse else "lines",
        "line": {"color": color, "width": 2},
        "marker": {"size": 5},
        "hovertemplate": "%{y:.3~p}" if share else "%{y:.4g}",
    }
    raw: Trace = {
        "type": "scatter",
        "uid": f"{key}-raw",
        "x": points.x,
        "y": points.y,
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
        "x": points.broken_x,
        "y": [_base(points.y)] * len(points.broken_x),
        "text": points.broken_names,
        "mode": "markers",
        "marker": {"color": RED, "symbol": "x", "size": 9},
        "hovertemplate": "%{text}",
    }
    return [*([raw] if smoothed else []), main, *([broken] if points.broken_x else [])]


def _base(values: Sequence[float | None]) -> float:
    """A height that fits on a linear and on a logarithmic axis."""
    return min((v for v in values if v is not None and v > 0), default=1.0)


def curve_layout(panel: Panel, view: CurveView, curves: Sequence[MetricsSeries]) -> dict[str, Any]:
    """Axes, title and legend of a chart of curves."""
    log_y = view.log_y and panel.logarithmic
    share = is_share(panel.metrics[0])
    return {
        "height": 250,
        "margin": margin(48, 12, 38, 36),
        "title": {"text": panel.heading, "x": 0, "y": 0.97, "yanchor": "top", "font": {"size": 14}},
        "hovermode": "x unified",
        "uirevision": f"{view.x_axis}-{view.log_x}-{log_y}",
        "showlegend": len(panel.metrics) > 1,
        "legend": LEGEND_ABOVE,
        "xaxis": {
            "zeroline": False,
            "type": "log" if view.log_x else "linear",
            "range": x_range(curves, view),
            "title": axis_title(X_TITLES[view.x_axis]),
            "unifiedhovertitle": {"text": X_HEADS[view.x_axis]},
        },
        "yaxis": {
            "zeroline": False,
            "type": "log" if log_y else "linear",
            "tickformat": ".1%" if share else None,
            "autorangeoptions": {"include": [0.01]} if share else {},
            "rangemode": "normal" if log_y else "tozero",
            "exponentformat": "power" if log_y else "SI",
        },
    }


def x_range(curves: Sequence[MetricsSeries], view: CurveView) -> list[float] | None:
    """The ends of the x axis, which all charts of these curves share; None if there is one point.

    Plotly's own range would depend on the curve: whether it has markers, and when it was measured.
    """
    at = [x for data in curves for x in positions(data, view.x_axis) if x > 0 or not view.log_x]
    ends = [math.log10(x) if view.log_x else x for x in (min(at), max(at))] if at else [0.0, 0.0]
    space = (ends[1] - ends[0]) * AXIS_SPACE
    return [ends[0] - space, ends[1] + space] if space else None
