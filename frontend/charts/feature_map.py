"""A snapshot's features on a plane, as a Plotly figure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from frontend.charts.figure import ORANGE, SMALL, TEAL, VIOLET, Figure, Trace, margin
from frontend.charts.histograms import FAINT, density_ticks
from frontend.html.format import percent
from frontend.html.tokens import plotly_text
from sae_engine.schema.analysis import FeatureMap, MapRegion

DENSITY_SCALE = [[0, VIOLET], [0.5, TEAL], [1, ORANGE]]
"""Distinct from each other and from the background of both themes."""
_MANY = 20_000
NAME_LENGTH = 16
"""Characters of a token that the name of a region shows."""


def map_figure(data: FeatureMap, *, chosen: Collection[int]) -> Figure:
    """Features as points, colored by density; the `chosen` ones stand out."""
    logs = [math.log10(density) for density in data.density]
    texts = [_hover_text(data, place) for place in range(len(data.index))]
    marker: dict[str, Any] = {
        "size": 5 if len(logs) < _MANY else 3,
        "opacity": FAINT if chosen else 0.85,
        "color": logs,
        "colorscale": DENSITY_SCALE,
        "colorbar": {
            "title": {"text": "density", "side": "top", "font": SMALL},
            "thickness": 10,
            "outlinewidth": 0,
            "len": 0.5,
            **density_ticks(),
        },
    }
    points = _points("features", data, range(len(logs)), texts, marker)
    places = [place for place, index in enumerate(data.index) if index in chosen]
    ringed = {"size": 10, "color": ORANGE, "line": {"color": "#ffffff", "width": 1}}
    found = _points("found", data, places, texts, ringed)
    axis = {"visible": False}
    layout = {
        "height": 660,
        "margin": margin(8, 8, 8, 8),
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": "pan",
        "uirevision": f"map {data.snapshot}",
        "xaxis": axis,
        "yaxis": {**axis, "scaleanchor": "x"},
        "annotations": [_name(region) for region in data.regions if region.tokens],
    }
    return Figure(data=[points, found], layout=layout)


def _name(region: MapRegion) -> dict[str, Any]:
    """The name of a region over its middle; a click goes through it."""
    return {
        "x": region.x,
        "y": region.y,
        "text": " · ".join(plotly_text(token[:NAME_LENGTH]) for token in region.tokens),
        "showarrow": False,
        "font": {"size": 12, "weight": 600},
        "borderpad": 1,
    }


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


def _hover_text(data: FeatureMap, place: int) -> str:
    index = data.index[place]
    label = data.labels.get(index, "")
    tokens = "   ".join(plotly_text(token) for token in data.top_tokens[place])
    star = "★ " if index in data.starred else ""
    head = f"{star}<b>{index}</b>  {percent(data.density[place])}"
    lines = (head, plotly_text(label[:80]), tokens)
    return "<br>".join(line for line in lines if line)
