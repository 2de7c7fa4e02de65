"""What every chart is made of: Plotly's JSON, and the colors."""

from __future__ import annotations

from typing import Any, TypedDict

Trace = dict[str, Any]


class Figure(TypedDict):
    """A chart as Plotly's JSON; what `plotly.graph_objects.Figure` takes."""

    data: list[Trace]
    layout: dict[str, Any]


TEAL = "#12899b"
ORANGE = "#e07a1f"
VIOLET = "#7a6ff0"
PINK = "#c2477f"
GREEN = "#5b8c3e"
GRAY = "#8a8f98"
RED = "#d6453d"

RUN_COLORS = (TEAL, ORANGE, VIOLET, PINK, GREEN, GRAY, "#3f74d1", "#a08322")
"""Colors of up to eight runs shown side by side, in order."""

SMALL = {"size": 11}
"""The font of axis titles."""
LEGEND_ABOVE = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}


def margin(left: int, right: int, top: int, bottom: int) -> dict[str, int]:
    """Space around a chart, in pixels."""
    return {"l": left, "r": right, "t": top, "b": bottom}


def axis_title(text: str) -> dict[str, Any]:
    """The title of an axis."""
    return {"text": text, "font": SMALL}
