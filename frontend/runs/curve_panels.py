"""A page's charts of curves, and the controls above them; the URL keeps the choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from frontend.charts.curves import CurveView, Panel
from frontend.charts.figure import Figure
from frontend.charts.plot import show_figure
from frontend.charts.series import X_TITLES, XAxis
from frontend.html.blocks import html_block
from frontend.html.format import count
from frontend.shell.url import bound, bound_choice, bound_toggle, choice_param, int_param
from sae_engine.schema.runs import MetricsSeries

COLUMNS = {
    1: ":material/crop_landscape:",
    2: ":material/view_column_2:",
    3: ":material/view_week:",
}
"""Numbers of charts side by side, with their icons."""
DEFAULT_COLUMNS = 2


def curve_view(
    curves: Sequence[MetricsSeries], extra: Callable[[], None] = lambda: None
) -> CurveView:
    """A row of controls that ends in `extra`, and the number of points if some are left out."""
    shown = sum(data.returned_points for data in curves)
    total = sum(data.total_points for data in curves)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        x_axis: XAxis = choice_param("x", tuple(X_TITLES)) or "step"
        bound_choice("x axis", "x", tuple(X_TITLES), x_axis, default="step", label=str.capitalize)
        log_y = bound_toggle("Log y", "log")
        log_x = bound_toggle("Log x", "logx")
        key, write = bound("smoothing", min(int_param("smoothing") or 0, 99), default=0)
        smoothing = st.slider("Smoothing", 0, 99, step=1, key=key, on_change=write, width=220)
        if total > shown:
            text = f"{count(shown)} of {count(total)} points"
            html_block(f'<span class="wb-muted">{text}</span>')
        bound_choice(
            "Charts side by side",
            "columns",
            tuple(COLUMNS),
            _num_columns(),
            default=DEFAULT_COLUMNS,
            label=COLUMNS.__getitem__,
        )
        extra()
    return CurveView(x_axis, log_x, log_y, smoothing / 100)


def show_panels(panels: Sequence[Panel], draw: Callable[[Panel], Figure]) -> None:
    """Charts in as many columns as the URL says."""
    columns = st.columns(_num_columns())
    for position, panel in enumerate(panels):
        with columns[position % len(columns)]:
            show_figure(draw(panel), key=f"chart-{panel.metrics[0]}", group="curves")


def _num_columns() -> int:
    found = int_param("columns")
    return found if found in COLUMNS else DEFAULT_COLUMNS
