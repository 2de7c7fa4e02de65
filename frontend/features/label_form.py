"""The form on a feature's page for its label, notes and star."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import client
from frontend.features.labeling import origin_line
from frontend.html.blocks import html_block
from frontend.shell.limits import say_wrong, too_long
from frontend.shell.problems import attempt
from sae_engine.schema.features import FeatureDetail
from sae_engine.schema.labels import LabelPatch, LabelUpdate
from sae_engine.schema.runs import Run

MOST_LABEL = 500
MOST_NOTES = 20_000
"""Limited by the API, both."""


def label_form(run: Run, feature: FeatureDetail) -> None:
    """The form, saved at every change; below it, the author of a proposed label."""
    # Each feature has boxes of its own, so that a text typed for one is never saved for another.
    label_key, notes_key, star_key = (
        f"{name}:{run.id}:{feature.index}" for name in ("label", "notes", "star")
    )
    _follow(label_key, feature.label or "")
    _follow(notes_key, feature.notes)
    _follow(star_key, feature.starred)
    seen = LabelUpdate(label=feature.label or "", notes=feature.notes, starred=feature.starred)

    def save() -> None:
        """Save what differs from what was drawn, such as a text that could not be saved before."""
        if _problems(label_key, notes_key):
            return
        label, notes = (st.session_state[key].strip() for key in (label_key, notes_key))
        starred: bool = st.session_state[star_key]
        patch = LabelPatch(
            features=[feature.index],
            label=label if label != seen.label else None,
            notes=notes if notes != seen.notes else None,
            starred=starred if starred != seen.starred else None,
            replaces=seen,
        )
        attempt(lambda: client().patch_labels(run.id, patch))

    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.text_input(
            "Label",
            key=label_key,
            placeholder="Describe this feature",
            on_change=save,
            label_visibility="collapsed",
        )
        star = "★" if feature.starred else "☆"
        st.checkbox(f"{star} Star", key=star_key, on_change=save)
    st.text_area(
        "Notes",
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


def _follow(key: str, stored: str | bool) -> None:
    """Show in a box what is stored, whoever changed it; until then, what was typed stays."""
    if st.session_state.get(f"stored:{key}") != stored or key not in st.session_state:
        st.session_state[f"stored:{key}"] = st.session_state[key] = stored


def _problems(label_key: str, notes_key: str) -> list[str]:
    """What is wrong with the label and the notes, which are not saved then."""
    found = (
        ("Label", too_long(st.session_state[label_key], MOST_LABEL)),
        ("Notes", too_long(st.session_state[notes_key], MOST_NOTES)),
    )
    return [f"{title}, not saved: {problem}" for title, problem in found if problem]
