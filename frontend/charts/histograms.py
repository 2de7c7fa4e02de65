"""Histograms as Plotly figures: activations of a feature, densities, cosines of two SAEs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from frontend.charts.figure import (
    GRAY,
    LEGEND_ABOVE,
    RUN_COLORS,
    TEAL,
    Figure,
    Trace,
    axis_title,
    margin,
)
from frontend.html.format import percent
from frontend.html.tokens import plotly_text
from sae_engine.schema.analysis import DensityHistogram, FeatureComparison
from sae_engine.schema.features import Histogram

FAINT = 0.3
_DECADES = range(-9, 1)


def _bars(edges: Sequence[float], counts: Sequence[int], color: str) -> Trace:
    """A bar of each count between its edges."""
    bins = list(pairwise(edges))
    return {
        "type": "bar",
        "x": [(low + high) / 2 for low, high in bins],
        "y": counts,
        "width": [high - low for low, high in bins],
        "marker": {"color": color, "line": {"width": 0}},
    }


def activation_figure(histogram: Histogram) -> Figure:
    """A feature's positive activations."""
    bars: Trace = _bars(histogram.edges, histogram.counts, TEAL) | {
        "customdata": [f"{low:.2f} – {high:.2f}" for low, high in pairwise(histogram.edges)],
        "hovertemplate": "%{customdata}: %{y:,} tokens<extra></extra>",
    }
    layout = {
        "height": 190,
        "margin": margin(44, 8, 8, 34),
        "bargap": 0.04,
        "showlegend": False,
        "xaxis": {"showgrid": False, "title": axis_title("activation")},
        "yaxis": {"title": axis_title("tokens")},
    }
    return Figure(data=[bars], layout=layout)


def density_figure(
    data: DensityHistogram, *, lowest: float | None, highest: float | None
) -> Figure:
    """Features by density on a logarithmic axis; bars outside the bounds are faint."""
    bins = list(pairwise(data.edges))
    inside = [(lowest or 0) < high and low < (highest or math.inf) for low, high in bins]
    edges = [math.log10(edge) for edge in data.edges]
    bars: Trace = _bars(edges, data.counts, TEAL) | {
        "customdata": bins,
        "hovertext": [f"{percent(low)} – {percent(high)}" for low, high in bins],
        "hovertemplate": "%{hovertext}: %{y:,} features<extra></extra>",
    }
    bars["marker"]["opacity"] = [1 if i else FAINT for i in inside]
    layout: dict[str, Any] = {
        "height": 130,
        "margin": margin(44, 8, 6, 34),
        "bargap": 0.04,
        "showlegend": False,
        "dragmode": "select",
        "selectdirection": "h",
        "selections": [],
        "xaxis": {
            "showgrid": False,
            "title": axis_title("density: share of tokens on which a feature fires"),
            "range": [edges[0], 0],
            **density_ticks(),
        },
        "yaxis": {"title": axis_title("features"), "fixedrange": True},
    }
    return Figure(data=[bars], layout=layout)


def density_ticks() -> dict[str, Any]:
    """Ticks of a logarithmic axis in percent."""
    return {
        "tickvals": list(_DECADES),
        "ticktext": [f"{10 ** (n + 2):.7f}".rstrip("0").rstrip(".") + "%" for n in _DECADES],
    }


def cosine_figure(data: FeatureComparison, names: Sequence[str]) -> Figure:
    """Features of two SAEs by the cosine to their nearest in the other SAE."""
    traces: list[Trace] = [
        _bars(data.cosine_edges, counts, color)
        | {
            "uid": f"cosines-{number}",
            "name": plotly_text(name),
            "opacity": 0.6,
            "hovertemplate": "%{x:.2f}: %{y:,} features",
        }
        for number, (name, counts, color) in enumerate(
            zip(names, (data.counts_a, data.counts_b), RUN_COLORS, strict=False)
        )
    ]
    line = {"type": "line", "x0": data.threshold, "x1": data.threshold, "y0": 0, "y1": 1}
    layout = {
        "height": 230,
        "margin": margin(48, 12, 30, 36),
        "barmode": "overlay",
        "bargap": 0,
        "legend": LEGEND_ABOVE,
        "shapes": [{**line, "yref": "paper", "line": {"color": GRAY, "dash": "dot"}}],
        "xaxis": {
            "title": axis_title("cosine to the nearest decoder row of the other SAE"),
            "range": [0, 1],
        },
        "yaxis": {"title": axis_title("features")},
    }
    return Figure(data=traces, layout=layout)
