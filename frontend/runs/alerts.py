"""Alerts of a run as badges and as marks on its curves."""

from __future__ import annotations

import html
from bisect import bisect_left
from collections.abc import Sequence

from frontend.charts.figure import GRAY, ORANGE, Figure, Trace
from frontend.charts.series import XAxis, positions
from frontend.html.format import counted
from frontend.html.tokens import plotly_text
from sae_engine.schema.runs import ENDED, AlertKind, MetricsSeries, Notice, Run

ALERTS: dict[AlertKind, tuple[str, str]] = {
    "non_finite": ("not finite", "A training metric became NaN or infinite."),
    "divergence": ("diverging", "The loss rose far above its earlier level."),
    "dead_latents": ("dead latents", "Many latents have stopped firing."),
    "dense_latents": ("dense latents", "Many latents fire on a large share of tokens."),
    "few_tokens": ("few tokens", "A few tokens hold most of the variance."),
    "heldout_overlap": ("repeated text", "Much of the held-out text was seen in training."),
    "throughput": ("slow", "Training is much slower than before."),
    "disk": ("disk low", "The disk that holds the runs is almost full."),
    "no_progress": ("no progress", "No progress for a long time."),
    "node_lost": ("machine lost", "The machine was lost; the run was queued again."),
}
"""A short name and a sentence for each kind."""
PASSING: tuple[AlertKind, ...] = ("throughput", "disk", "no_progress")
"""About the moment and not about the SAE, so they are of no interest once the run has ended."""


def alert_badges(run: Run) -> str:
    """One badge for each kind of alert."""
    return "".join(
        f'<span class="wb-badge alert" title="{html.escape(ALERTS[kind][1], quote=True)}">'
        f"{ALERTS[kind][0]}</span>"
        for kind in _current(run)
    )


def alert_count(run: Run) -> str:
    """One small badge for all alerts, with their names on hover."""
    current = _current(run)
    if not current:
        return ""
    names = ", ".join(ALERTS[kind][0] for kind in current)
    number = counted(len(current), "alert")
    return f'<span class="wb-badge alert" title="{names}">{number}</span>'


def _current(run: Run) -> list[AlertKind]:
    return [kind for kind in run.alerts if kind not in PASSING or run.status not in ENDED]


def with_marks(
    figure: Figure, notices: Sequence[Notice], data: MetricsSeries, x_axis: XAxis
) -> Figure:
    """The figure with a dashed line at the step of each notice; a flag shows its message."""
    marked = [n for n in notices if n.step is not None]
    if not marked or not data.step:
        return figure
    x = [_place(n.step or 0, data, x_axis) for n in marked]
    colors = [ORANGE if n.kind else GRAY for n in marked]
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
        "hovertext": [_wrapped(n.message) for n in marked],
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
    """A message in short lines, escaped for Plotly."""
    lines: list[str] = [""]
    for word in message.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}"
    return "<br>".join(plotly_text(line.strip()) for line in lines if line)
