"""Runs of a sweep as lines across parallel axes of their settings and results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from frontend.charts.figure import GRAY, SMALL, Figure, Trace, margin
from frontend.html.format import DASH
from frontend.html.tokens import plotly_text

_LOGARITHMIC_FROM = 10
_MOST_TICKS = 6


class Axis(NamedTuple):
    """One axis: its title, and one value per run; None if a run has none."""

    title: str
    values: Sequence[Any]


class _Scale(NamedTuple):
    """An axis drawn from 0 to 1."""

    heights: list[float | None]
    ticks: list[tuple[float, str]]


def parallel_figure(
    axes: Sequence[Axis], ids: Sequence[str], names: Sequence[str], colors: Sequence[str]
) -> Figure:
    """One line per run; the `customdata` of its points is the run's id."""
    scales = [_scale(axis.values) for axis in axes]
    places = list(range(len(axes)))
    traces: list[Trace] = [
        {
            "type": "scatter",
            "uid": ids[run],
            "mode": "lines+markers",
            "x": places,
            "y": [scale.heights[run] for scale in scales],
            "customdata": [ids[run]] * len(axes),
            "hovertext": [_text(axes, names[run], run)] * len(axes),
            "hovertemplate": "%{hovertext}<extra></extra>",
            "line": {"color": colors[run], "width": 2},
            "marker": {"size": 7},
            "opacity": 0.85 if len(ids) <= 32 else 0.5,
        }
        for run in range(len(ids))
    ]
    labels = [
        {
            "x": place,
            "y": height,
            "text": plotly_text(text),
            "showarrow": False,
            "xanchor": "right",
            "xshift": -7,
            "font": SMALL,
        }
        for place, scale in enumerate(scales)
        for height, text in scale.ticks
    ]
    bars = [
        {
            "type": "line",
            "x0": place,
            "x1": place,
            "y0": 0,
            "y1": 1,
            "layer": "below",
            "line": {"color": GRAY, "width": 1},
        }
        for place in places
    ]
    layout = {
        "height": 340,
        "margin": margin(60, 30, 40, 16),
        "hovermode": "closest",
        "showlegend": False,
        "uirevision": "parallel",
        "shapes": bars,
        "annotations": labels,
        "xaxis": {
            "side": "top",
            "tickvals": places,
            "ticktext": [plotly_text(axis.title) for axis in axes],
            "range": [-0.35, len(axes) - 0.8],
            "showgrid": False,
            "showline": False,
            "zeroline": False,
            "fixedrange": True,
        },
        "yaxis": {"visible": False, "range": [-0.06, 1.06], "fixedrange": True},
    }
    return Figure(data=traces, layout=layout)


def _text(axes: Sequence[Axis], name: str, run: int) -> str:
    lines = [f"{plotly_text(axis.title)} {_value_text(axis.values[run])}" for axis in axes]
    return "<br>".join([f"<b>{plotly_text(name)}</b>", *lines])


def _value_text(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plotly_text(str(value))
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"


def _scale(values: Sequence[Any]) -> _Scale:
    """Numbers by size, logarithmic if they span a wide range; other values in equal steps."""
    numbers = [v for v in values if _is_number(v)]
    if numbers and all(value is None or _is_number(value) for value in values):
        return _numeric(values, numbers)
    kinds = list(dict.fromkeys(_value_text(value) for value in values if value is not None))
    top = max(1, len(kinds) - 1)
    heights = {kind: place / top for place, kind in enumerate(kinds)}
    return _Scale(
        [heights.get(_value_text(value)) for value in values],
        [(height, kind) for kind, height in heights.items()],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numeric(values: Sequence[Any], numbers: Sequence[float]) -> _Scale:
    low, high = min(numbers), max(numbers)
    logarithmic = low > 0 and high >= _LOGARITHMIC_FROM * low

    def height(value: float) -> float:
        if low == high:
            return 0.5
        if logarithmic:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    distinct = sorted(set(numbers))
    shown = distinct if len(distinct) <= _MOST_TICKS else [low, high]
    heights = [None if value is None else height(value) for value in values]
    return _Scale(heights, [(height(value), _value_text(value)) for value in shown])
