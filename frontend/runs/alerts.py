"""What a run is watched for, as badges and as marks on its curves."""

from __future__ import annotations

import html
from bisect import bisect_left
from collections.abc import Sequence

from frontend.charts.curves import GRAY, ORANGE, Figure, Trace, XAxis, positions
from frontend.html.tokens import plotly_text
from sae_engine.schema.runs import AlertKind, MetricsSeries, Notice, Run

ALERTS: dict[AlertKind, tuple[str, str]] = {
    "non_finite": ("not finite", "A number of the training became NaN or infinite."),
    "divergence": ("diverging", "The loss rose far above what it had been."),
    "dead_latents": ("dead latents", "Many latents have stopped to fire."),
    "dense_latents": ("dense latents", "Many latents fire on a large share of all tokens."),
    "throughput": ("slow", "It trains much slower than before."),
    "disk": ("disk low", "The disk that keeps the runs is almost full."),
    "no_progress": ("no progress", "Nothing has been heard of it for long."),
}
"""A short name and a sentence for each kind."""


def alert_badges(run: Run) -> str:
    """One badge for each kind of alert."""
    return "".join(
        f'<span class="wb-badge alert" title="{html.escape(ALERTS[kind][1], quote=True)}">'
        f"{ALERTS[kind][0]}</span>"
        for kind in run.alerts
    )


def alert_count(run: Run) -> str:
    """One small badge for all alerts, which names them when it is pointed at."""
    if not run.alerts:
        return ""
    names = ", ".join(ALERTS[kind][0] for kind in run.alerts)
    number = len(run.alerts)
    text = f"{number} alert{'s' if number > 1 else ''}"
    return f'<span class="wb-badge alert" title="{names}">{text}</span>'


def with_marks(
    figure: Figure, notices: Sequence[Notice], data: MetricsSeries, x_axis: XAxis
) -> Figure:
    """The figure with a dashed line at the step of each notice, whose flag shows its message."""
    placed = [n for n in notices if n.step is not None]
    if not placed or not data.step:
        return figure
    x = [_place(n.step or 0, data, x_axis) for n in placed]
    colors = [ORANGE if n.kind else GRAY for n in placed]
    flags: Trace = {
        "type": "scatter",
        "uid": "notices",
        "mode": "markers",
        "x": x,
        "y": [1] * len(x),
        "yaxis": "y2",
        "cliponaxis": False,
        "showlegend": False,
        "marker": {"symbol": "triangle-down", "size": 10, "color": colors},
        "hovertext": [_wrapped(n.message) for n in placed],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    lines = [
        {
            "type": "line",
            "x0": at,
            "x1": at,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"color": color, "width": 1, "dash": "dash"},
        }
        for at, color in zip(x, colors, strict=True)
    ]
    above = {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}
    layout = figure["layout"] | {"shapes": lines, "yaxis2": above}
    return Figure(data=[*figure["data"], flags], layout=layout)


def _place(step: int, data: MetricsSeries, x_axis: XAxis) -> float:
    """Where a step lies on an axis: at the first point of that step or later."""
    if x_axis == "step":
        return step
    return positions(data, x_axis)[min(bisect_left(data.step, step), len(data.step) - 1)]


def _wrapped(message: str, width: int = 60) -> str:
    """A message in short lines, as Plotly shows it unchanged."""
    lines: list[str] = [""]
    for word in message.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}"
    return "<br>".join(plotly_text(line.strip()) for line in lines if line)
