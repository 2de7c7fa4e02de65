"""What a page of curves lets one choose; the URL keeps it."""

from __future__ import annotations

import streamlit as st

from frontend.charts import X_TITLES, XAxis
from frontend.state import bound, choice_param


def x_axis_choice() -> XAxis:
    """Step, tokens or time."""
    axes = tuple(X_TITLES)
    current: XAxis = choice_param("x", axes) or "step"
    key, write = bound("x", current, default="step")
    chosen = st.segmented_control(
        "x axis", axes, key=key, on_change=write, label_visibility="collapsed", required=True
    )
    return chosen or current


def log_choice() -> bool:
    """Whether vertical axes are logarithmic where they may be."""
    key, write = bound("log", choice_param("log", ("1", "True")) is not None, default=False)
    return st.toggle("Log scale", key=key, on_change=write)
