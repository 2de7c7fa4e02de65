"""What a page of curves lets one choose; the URL keeps it."""

from __future__ import annotations

from typing import NamedTuple

import streamlit as st

from frontend.charts.curves import X_TITLES, XAxis
from frontend.html.blocks import html_block
from frontend.html.format import count
from frontend.shell.url import bound, choice_param, int_param


class CurveView(NamedTuple):
    """How curves are drawn."""

    x_axis: XAxis
    log_x: bool
    log_y: bool
    smoothing: float
    """Weight of what came before, below 1; 0 leaves curves as they are."""


def curve_view(*, shown: int, total: int) -> CurveView:
    """The choices in a row, and how many of the points are shown where that is not all."""
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        x_axis = _x_axis()
        log_y = _toggle("log", "Log y")
        log_x = _toggle("logx", "Log x")
        key, write = bound("smoothing", min(int_param("smoothing") or 0, 99), default=0)
        smoothing = st.slider("Smoothing", 0, 99, step=1, key=key, on_change=write, width=220)
        if total > shown:
            text = f"{count(shown)} of {count(total)} points"
            html_block(f'<span class="wb-muted wb-points">{text}</span>')
    return CurveView(x_axis, log_x, log_y, smoothing / 100)


def _x_axis() -> XAxis:
    """Step, tokens or time."""
    axes = tuple(X_TITLES)
    current: XAxis = choice_param("x", axes) or "step"
    key, write = bound("x", current, default="step")
    chosen = st.segmented_control(
        "x axis", axes, key=key, on_change=write, label_visibility="collapsed", required=True
    )
    return chosen or current


def _toggle(name: str, title: str) -> bool:
    key, write = bound(name, choice_param(name, ("1", "True")) is not None, default=False)
    return st.toggle(title, key=key, on_change=write)
