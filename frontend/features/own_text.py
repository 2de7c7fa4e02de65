"""The box on a feature's page that shows one's own text colored by the feature."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import client
from frontend.api.client import ApiProblem
from frontend.features.token_chips import own_text_line
from frontend.html.blocks import html_block, link, show_linked
from frontend.html.format import number
from frontend.html.tokens import escaped
from frontend.shell.url import bound, param, show_problem
from frontend.shell.warm_up import with_progress
from sae_engine.schema.features import FeatureDetail
from sae_engine.schema.playground import TextActivations
from sae_engine.schema.runs import Run

MAX_CHARACTERS = 2000


def own_text(run: Run, feature: FeatureDetail) -> None:
    """The box, and what the feature makes of the text in it; the text stays from feature to
    feature.
    """
    text = st.query_params.get("own", "")[:MAX_CHARACTERS]
    key, write = bound("own", text)
    with st.container(key="own-text", gap="xxsmall"):
        st.text_area(
            "Test your own text",
            key=key,
            on_change=write,
            height=68,
            max_chars=MAX_CHARACTERS,
            placeholder="Test your own text on this feature; Ctrl + Enter reads it",
            label_visibility="collapsed",
        )
        if not text:
            return
        try:
            answer = _read(run, feature, text)
        except ApiProblem as error:
            show_problem(error)
            return
        html_block(own_text_line(answer))
        show_linked(_verdict(run, feature, text, answer), key="own-links")


def _verdict(run: Run, feature: FeatureDetail, text: str, answer: TextActivations) -> str:
    query = {"id": run.id, "snapshot": param("snapshot")}
    here = link("playground", "all its features", {**query, "text": text, "lock": feature.index})
    steer = link("playground", "steer with this feature", {**query, "steer": f"{feature.index}:1"})
    largest = max(answer.features[0].activations)
    fires = f"at most {number(largest)} here" if largest > 0 else "the feature is silent here"
    return f'<p class="wb-muted wb-own">{escaped(fires)} · {here} · {steer}</p>'


def _read(run: Run, feature: FeatureDetail, text: str) -> TextActivations:
    question = (run.id, feature.snapshot, feature.index, text)
    held: tuple[object, TextActivations] | None = st.session_state.get("own-reading")
    if held is not None and held[0] == question:
        return held[1]
    api = client()
    answer = with_progress(
        lambda: api.activations(
            run.id, text, top=1, features=[feature.index], snapshot=feature.snapshot
        )
    )
    st.session_state["own-reading"] = (question, answer)
    return answer
