"""The form on a feature's page for its label, notes and star."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import client
from frontend.features.labeling import origin_line
from frontend.html.blocks import html_block
from frontend.shell.limits import say_wrong, too_long
from frontend.shell.problems import attempt
from sae_engine.schema.features import FeatureDetail
from sae_engine.schema.labels import LabelUpdate
from sae_engine.schema.runs import Run

MOST_LABEL = 500
MOST_NOTES = 20_000
"""Limited by the API, both."""


def label_form(run: Run, feature: FeatureDetail) -> None:
    """The form, saved at every change; below it, the author of a proposed label."""
    # Streamlit ignores the initial value of a widget it knows, so each feature has its own.
    label_key, notes_key, star_key = (
        f"{name}:{run.id}:{feature.index}" for name in ("label", "notes", "star")
    )

    def save() -> None:
        if _problems(label_key, notes_key):
            return
        update = LabelUpdate(
            label=st.session_state[label_key].strip(),
            notes=st.session_state[notes_key].strip(),
            starred=st.session_state[star_key],
        )
        attempt(lambda: client().label(run.id, feature.index, update))

    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.text_input(
            "Label",
            value=feature.label or "",
            key=label_key,
            placeholder="Describe this feature",
            on_change=save,
            label_visibility="collapsed",
        )
        star = "★" if feature.starred else "☆"
        st.checkbox(f"{star} Star", value=feature.starred, key=star_key, on_change=save)
    st.text_area(
        "Notes",
        value=feature.notes,
        key=notes_key,
        placeholder="Notes",
        height=68,
        on_change=save,
        label_visibility="collapsed",
    )
    for problem in _problems(label_key, notes_key):
        say_wrong(problem)
    written = client().labels(run.id, [feature.index]) if feature.label else []
    html_block("".join(map(origin_line, written)))


def _problems(label_key: str, notes_key: str) -> list[str]:
    """What is wrong with the label and the notes, which are not saved then."""
    found = (
        ("Label", too_long(st.session_state[label_key], MOST_LABEL)),
        ("Notes", too_long(st.session_state[notes_key], MOST_NOTES)),
    )
    return [f"{title}, not saved: {problem}" for title, problem in found if problem]
