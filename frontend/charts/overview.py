"""Many features at a glance, as Plotly figures: pure functions of what the API answers."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from frontend.charts.curves import ORANGE, TEAL, Figure, Trace
from frontend.charts.overlay import RUN_COLORS
from frontend.html.format import percent
from frontend.html.tokens import plotly_text
from sae_engine.schema.analysis import DensityHistogram, FeatureComparison, FeatureMap

FAINT = 0.3
DENSITY_SCALE = [[0, "#7a6ff0"], [0.5, "#12899b"], [1, "#e07a1f"]]
"""Distinct from each other and from both themes' grounds."""
DECADES = range(-9, 1)

_SMALL = {"size": 11}


def density_figure(
    data: DensityHistogram, *, lowest: float | None, highest: float | None
) -> Figure:
    """Features by density on a logarithmic axis; bars outside the bounds are faint."""
    bins = list(pairwise(data.edges))
    inside = [(lowest or 0) < high and low < (highest or math.inf) for low, high in bins]
    logs = [(math.log10(low), math.log10(high)) for low, high in bins]
    bars: Trace = {
        "type": "bar",
        "x": [(low + high) / 2 for low, high in logs],
        "y": data.counts,
        "width": [high - low for low, high in logs],
        "customdata": bins,
        "hovertext": [f"{percent(low)} – {percent(high)}" for low, high in bins],
        "marker": {
            "color": TEAL,
            "line": {"width": 0},
            "opacity": [1 if i else FAINT for i in inside],
        },
        "hovertemplate": "%{hovertext}: %{y:,} features<extra></extra>",
    }
    layout: dict[str, Any] = {
        "height": 130,
        "margin": {"l": 44, "r": 8, "t": 6, "b": 34},
        "bargap": 0.04,
        "showlegend": False,
        "dragmode": "select",
        "selectdirection": "h",
        "selections": [],
        "xaxis": {
            "showgrid": False,
            "title": {"text": "density: share of tokens a feature fires on", "font": _SMALL},
            "range": [logs[0][0], 0],
            **_decades(),
        },
        "yaxis": {"title": {"text": "features", "font": _SMALL}, "fixedrange": True},
    }
    return Figure(data=[bars], layout=layout)


def _decades() -> dict[str, Any]:
    """Marks of a logarithmic axis as shares in percent."""
    return {
        "tickvals": list(DECADES),
        "ticktext": [f"{10 ** (n + 2):.7f}".rstrip("0").rstrip(".") + " %" for n in DECADES],
    }


def map_figure(data: FeatureMap, *, chosen: Collection[int]) -> Figure:
    """Features as points, colored by density; those that are `chosen` stand out."""
    logs = [math.log10(density) for density in data.density]
    texts = [_map_text(data, place) for place in range(len(data.index))]
    marker: dict[str, Any] = {
        "size": 5 if len(logs) < 20_000 else 3,
        "opacity": FAINT if chosen else 0.85,
        "color": logs,
        "colorscale": DENSITY_SCALE,
        "colorbar": {
            "title": {"text": "density", "side": "top", "font": _SMALL},
            "thickness": 10,
            "outlinewidth": 0,
            "len": 0.5,
            **_decades(),
        },
    }
    points = _points("features", data, range(len(logs)), texts, marker)
    places = [place for place, index in enumerate(data.index) if index in chosen]
    ringed = {"size": 10, "color": ORANGE, "line": {"color": "#ffffff", "width": 1}}
    found = _points("found", data, places, texts, ringed)
    axis = {"visible": False}
    layout = {
        "height": 660,
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": "pan",
        "uirevision": f"map {data.snapshot}",
        "xaxis": axis,
        "yaxis": {**axis, "scaleanchor": "x"},
    }
    return Figure(data=[points, found], layout=layout)


def _points(
    key: str, data: FeatureMap, places: Sequence[int], texts: list[str], marker: dict[str, Any]
) -> Trace:
    return {
        "type": "scattergl",
        "uid": key,
        "mode": "markers",
        "x": [data.x[place] for place in places],
        "y": [data.y[place] for place in places],
        "customdata": [data.index[place] for place in places],
        "hovertext": [texts[place] for place in places],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": marker,
    }


def _map_text(data: FeatureMap, place: int) -> str:
    index = data.index[place]
    label = data.labels.get(index, "")
    tokens = "   ".join(plotly_text(token) for token in data.top_tokens[place])
    lines = (f"<b>{index}</b>  {percent(data.density[place])}", plotly_text(label[:80]), tokens)
    return "<br>".join(line for line in lines if line)


def cosine_figure(data: FeatureComparison, names: Sequence[str]) -> Figure:
    """Features of two SAEs by the cosine to their nearest in the other one."""
    edges = data.cosine_edges
    counts = (data.counts_a, data.counts_b)
    traces: list[Trace] = [
        {
            "type": "bar",
            "uid": f"cosines-{number}",
            "name": plotly_text(name),
            "x": [(low + high) / 2 for low, high in pairwise(edges)],
            "y": counts[number],
            "marker": {"color": RUN_COLORS[number], "line": {"width": 0}},
            "opacity": 0.6,
            "hovertemplate": "%{x:.2f}: %{y:,} features",
        }
        for number, name in enumerate(names)
    ]
    line = {"type": "line", "x0": data.threshold, "x1": data.threshold, "y0": 0, "y1": 1}
    layout = {
        "height": 230,
        "margin": {"l": 48, "r": 12, "t": 30, "b": 36},
        "barmode": "overlay",
        "bargap": 0,
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        "shapes": [{**line, "yref": "paper", "line": {"color": "#8a8f98", "dash": "dot"}}],
        "xaxis": {
            "title": {"text": "cosine to the nearest decoder row of the other", "font": _SMALL},
            "range": [0, 1],
        },
        "yaxis": {"title": {"text": "features", "font": _SMALL}},
    }
    return Figure(data=traces, layout=layout)
