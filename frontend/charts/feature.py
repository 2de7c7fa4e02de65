"""One feature as Plotly figures: its activations, and what became of it over the snapshots."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from frontend.charts.curves import ORANGE, TEAL, Figure, Trace
from sae_engine.schema.features import FeatureHistory, Histogram


def histogram_figure(histogram: Histogram) -> Figure:
    """A feature's positive activations, counted between edges."""
    bins = list(pairwise(histogram.edges))
    bars: Trace = {
        "type": "bar",
        "x": [(low + high) / 2 for low, high in bins],
        "y": histogram.counts,
        "width": [high - low for low, high in bins],
        "customdata": [f"{low:.2f} – {high:.2f}" for low, high in bins],
        "marker": {"color": TEAL, "line": {"width": 0}},
        "hovertemplate": "%{customdata}: %{y:,} tokens<extra></extra>",
    }
    small = {"size": 11}
    layout = {
        "height": 190,
        "margin": {"l": 44, "r": 8, "t": 8, "b": 34},
        "bargap": 0.04,
        "showlegend": False,
        "xaxis": {"showgrid": False, "title": {"text": "activation", "font": small}},
        "yaxis": {"title": {"text": "tokens", "font": small}},
    }
    return Figure(data=[bars], layout=layout)


def _colored_axis(title: str, color: str) -> dict[str, Any]:
    """An axis in the color of its curve, which makes a legend unnecessary."""
    return {
        "title": {"text": title, "font": {"size": 11, "color": color}},
        "tickfont": {"color": color},
    }


def history_figure(history: FeatureHistory) -> Figure:
    """A feature's density and how near its direction already was, snapshot by snapshot."""
    steps = [moment.step for moment in history.moments]
    line = {"type": "scatter", "mode": "lines+markers", "x": steps}
    density: Trace = line | {
        "name": "density",
        "y": [moment.density.fraction for moment in history.moments],
        "line": {"color": TEAL},
        "hovertemplate": "density %{y:.3%}<extra></extra>",
    }
    cosine: Trace = line | {
        "name": "cosine to the newest direction",
        "y": [moment.decoder_cosine for moment in history.moments],
        "line": {"color": ORANGE},
        "yaxis": "y2",
        "hovertemplate": "cosine %{y:.3f}<extra></extra>",
    }
    layout = {
        "height": 170,
        "margin": {"l": 56, "r": 52, "t": 8, "b": 34},
        "hovermode": "x unified",
        "showlegend": False,
        "xaxis": {"showgrid": False, "title": {"text": "step", "font": {"size": 11}}},
        "yaxis": _colored_axis("density", TEAL) | {"rangemode": "tozero", "tickformat": ".2%"},
        "yaxis2": _colored_axis("cosine", ORANGE)
        | {"overlaying": "y", "side": "right", "range": [-0.05, 1.05], "showgrid": False}
        | {"tickvals": [0, 0.5, 1]},
    }
    return Figure(data=[density, cosine], layout=layout)
