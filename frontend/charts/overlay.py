"""Curves of several runs in one chart, as Plotly figures."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.charts.curves import (
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    TEAL,
    VIOLET,
    Figure,
    Panel,
    Trace,
    XAxis,
    curve,
    curve_layout,
    positions,
    split,
)
from frontend.html.tokens import plotly_text
from sae_engine.schema.records import METRICS
from sae_engine.schema.runs import MetricsSeries, MetricValue

RUN_COLORS = (TEAL, ORANGE, VIOLET, PINK, GREEN, GRAY, "#3f74d1", "#a08322")
"""Of the first run to the eighth, wherever runs are side by side."""

OVERLAID = ("fvu", "eval_fvu", "l0", "frac_dead", "ce_delta", "loss", "lr", "tokens_per_second")
LOGARITHMIC = ("fvu", "eval_fvu", "ce_delta", "loss")
SHARES = ("frac_dead",)


def run_colors(count: int) -> list[str]:
    """A color for each of `count` runs: those above, or shades from one end of a scale to the other
    where there are more.
    """
    if count <= len(RUN_COLORS):
        return list(RUN_COLORS[:count])
    return [f"hsl({200 + 200 * n / (count - 1):.0f}, 55%, 52%)" for n in range(count)]


def overlay_figure(
    panel: Panel,
    curves: Sequence[MetricsSeries],
    names: Sequence[str],
    colors: Sequence[str] = RUN_COLORS,
    *,
    x_axis: XAxis,
    log_x: bool = False,
    log_y: bool = False,
    smoothing: float = 0.0,
) -> Figure:
    """The panel's first metric of several runs, a color for each run."""
    metric = panel.metrics[0]
    traces: list[Trace] = []
    for number, (data, name) in enumerate(zip(curves, names, strict=True)):
        x = positions(data, x_axis)
        absent: list[MetricValue] = [None] * len(x)
        traces += curve(
            split(x, data.series.get(metric, absent)),
            key=f"{metric}-{number}",
            title=plotly_text(name),
            color=colors[number],
            smoothing=smoothing,
        )
    layout = curve_layout(panel, x_axis, log_x=log_x, log_y=log_y and panel.logarithmic)
    return Figure(data=traces, layout={**layout, "showlegend": False})


def overlay_panels(curves: Sequence[MetricsSeries]) -> list[Panel]:
    """One chart for each metric that was measured in any of the runs."""
    measured = [
        name
        for name in OVERLAID
        if any(value is not None for data in curves for value in data.series.get(name, []))
    ]
    return [
        Panel(
            METRICS[name].title, (name,), (), logarithmic=name in LOGARITHMIC, share=name in SHARES
        )
        for name in measured
    ]
