"""Curves of several runs in one chart, as Plotly figures."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.charts.curves import CurveView, Panel, curve, curve_layout
from frontend.charts.figure import RUN_COLORS, Figure
from frontend.charts.series import measured_in, points_of
from frontend.html.format import is_share
from frontend.html.tokens import plotly_text
from sae_engine.schema.runs import MetricsSeries

OVERLAID = ("fvu", "eval_fvu", "l0", "frac_dead", "ce_delta", "loss", "lr", "tokens_per_second")
"""The metrics that runs are compared by, most important first."""


def run_colors(count: int) -> list[str]:
    """A color for each of `count` runs; shades of one scale if there are more than `RUN_COLORS`."""
    if count <= len(RUN_COLORS):
        return list(RUN_COLORS[:count])
    return [f"hsl({200 + 200 * n / (count - 1):.0f}, 55%, 52%)" for n in range(count)]


def overlay_figure(
    panel: Panel,
    curves: Sequence[MetricsSeries],
    names: Sequence[str],
    colors: Sequence[str],
    view: CurveView,
) -> Figure:
    """The panel's first metric of several runs, in one color per run."""
    metric = panel.metrics[0]
    traces = [
        trace
        for number, (data, name) in enumerate(zip(curves, names, strict=True))
        for trace in curve(
            points_of(data, metric, view.x_axis),
            key=f"{metric}-{number}",
            title=plotly_text(name),
            color=colors[number],
            smoothing=view.smoothing,
            share=is_share(metric),
        )
    ]
    return Figure(data=traces, layout=curve_layout(panel, view, curves) | {"showlegend": False})


def overlay_panels(curves: Sequence[MetricsSeries]) -> list[Panel]:
    """One chart for each of the `OVERLAID` metrics that was measured in any of the runs."""
    measured = measured_in(curves)
    return [Panel((name,)) for name in OVERLAID if name in measured]
