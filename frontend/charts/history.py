"""A feature over the snapshots of its run, as a Plotly figure."""

from __future__ import annotations

from typing import Any

from frontend.charts.figure import ORANGE, SMALL, TEAL, Figure, Trace, axis_title, margin
from sae_engine.schema.features import FeatureHistory


def history_figure(history: FeatureHistory) -> Figure:
    """A feature's density, and the cosine of its decoder row to the latest one, by snapshot."""
    steps = [moment.step for moment in history.moments]
    line = {"type": "scatter", "mode": "lines+markers", "x": steps}
    density: Trace = line | {
        "name": "density",
        "y": [moment.density.fraction for moment in history.moments],
        "line": {"color": TEAL},
        "hovertemplate": "density %{y:.3%}<extra></extra>",
    }
    cosine: Trace = line | {
        "name": "cosine to the latest direction",
        "y": [moment.decoder_cosine for moment in history.moments],
        "line": {"color": ORANGE},
        "yaxis": "y2",
        "hovertemplate": "cosine %{y:.3f}<extra></extra>",
    }
    layout = {
        "height": 170,
        "margin": margin(56, 52, 8, 34),
        "hovermode": "x unified",
        "showlegend": False,
        "xaxis": {"showgrid": False, "title": axis_title("step")},
        "yaxis": _colored_axis("density", TEAL) | {"rangemode": "tozero", "tickformat": ".2%"},
        "yaxis2": _colored_axis("cosine", ORANGE)
        | {"overlaying": "y", "side": "right", "range": [-0.05, 1.05], "showgrid": False}
        | {"tickvals": [0, 0.5, 1]},
    }
    return Figure(data=[density, cosine], layout=layout)


def _colored_axis(title: str, color: str) -> dict[str, Any]:
    """An axis in the color of its curve, which makes a legend unnecessary."""
    return {
        "title": {"text": title, "font": SMALL | {"color": color}},
        "tickfont": {"color": color},
    }
