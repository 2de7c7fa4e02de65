"""Features picked in a list: their boxes and stars, and what is done to all of them at once.

The address holds the picked features, so they stay while the list is paged, sorted and filtered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import streamlit as st

from frontend.api.cache import client
from frontend.features.label_form import MOST_LABEL
from frontend.html.blocks import act_button, html_block, set_link, toggle_link
from frontend.html.format import counted
from frontend.shell.limits import say_wrong, too_long
from frontend.shell.problems import attempt
from frontend.shell.url import list_param, set_param
from sae_engine.schema.features import FeatureRow
from sae_engine.schema.labels import LabelPatch
from sae_engine.schema.runs import Run

MOST_PICKED = 500
"""Limited by the API."""
_LABEL = "picked-label"


def picked_features() -> list[int]:
    """The picked features, in the order in which they were picked."""
    return [int(part) for part in list_param("pick") if part.isdecimal()][:MOST_PICKED]


def pick_box(index: int, picked: Collection[int]) -> str:
    """A box that picks a feature, or drops it."""
    tip = f"Select feature {index}"
    return toggle_link("pick", str(index), on=index in picked, tip=tip)


def pick_all(rows: Sequence[FeatureRow], picked: Sequence[int]) -> str:
    """A box that picks every feature of the page, or drops them if all are picked."""
    here = [row.index for row in rows]
    on = set(here) <= set(picked)
    others = [index for index in picked if index not in here]
    change = {"pick": ",".join(map(str, others if on else [*others, *here])) or None}
    css = "wb-check on" if on else "wb-check"
    return set_link("✓" if on else "", change, css=css, tip="Select this page", checked=on)


def star_button(row: FeatureRow) -> str:
    """A button that stars a feature, or takes its star away."""
    verb, sign = ("unstar", "★") if row.starred else ("star", "☆")
    tip = f"Star feature {row.index}"
    return act_button(verb, str(row.index), sign, tip, css="wb-starring", pressed=row.starred)


def carry_out(run: Run, act: tuple[str, str] | None) -> None:
    """Star the feature whose button was clicked, or take its star away."""
    if act is not None:
        verb, index = act
        _patch(run, [int(index)], starred=verb == "star")
        st.rerun()


def selection_bar(run: Run, picked: Sequence[int]) -> None:
    """The actions on all picked features; nothing without any."""
    if not picked:
        return

    def apply(**change: object) -> Callable[[], None]:
        return lambda: _patch(run, picked, **change)

    def label() -> None:
        if too_long(st.session_state[_LABEL], MOST_LABEL):
            return
        _patch(run, picked, label=st.session_state[_LABEL].strip())
        st.session_state[_LABEL] = ""

    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="picked"):
        html_block(f"<strong>{counted(len(picked), 'feature')} selected</strong>")
        st.button("Star", icon=":material/star:", key="picked-star", on_click=apply(starred=True))
        st.button("Remove star", key="picked-unstar", on_click=apply(starred=False))
        st.text_input(
            "Label for the selected features",
            key=_LABEL,
            placeholder="Label for all of them",
            label_visibility="collapsed",
            width=230,
        )
        has_text = bool(st.session_state.get(_LABEL, "").strip())
        text = "Set label" if has_text else "Remove labels"
        st.button(text, key="picked-set", on_click=label)
        st.button(
            "Clear selection",
            key="picked-clear",
            type="tertiary",
            on_click=set_param,
            args=("pick", None),
        )
        say_wrong(too_long(st.session_state.get(_LABEL, ""), MOST_LABEL))


def _patch(run: Run, features: Sequence[int], **change: object) -> None:
    body = LabelPatch.model_validate({"features": list(features), **change})
    attempt(lambda: client().patch_labels(run.id, body))
