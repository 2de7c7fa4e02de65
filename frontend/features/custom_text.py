"""The box on a feature's page that colors the reader's own text by the feature."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import client
from frontend.api.client import ApiProblem
from frontend.features.token_chips import STRENGTH, colored_text
from frontend.html.blocks import html_block, link, show_linked
from frontend.html.format import number
from frontend.shell.limits import say_wrong
from frontend.shell.problems import show_problem
from frontend.shell.progress import kept_answer
from frontend.shell.url import limited, param
from sae_engine.schema.features import FeatureDetail
from sae_engine.schema.playground import TextActivations
from sae_engine.schema.runs import Run

MAX_CHARACTERS = 2000
"""Limited by the length of a URL."""


def custom_text(run: Run, feature: FeatureDetail) -> None:
    """The box and the colored text, which stays when the reader moves to another feature."""
    text = st.query_params.get("own", "")
    title = "Test your own text"
    key, write, problem = limited(title, "own", text, MAX_CHARACTERS)
    with st.container(key="own-text", gap="xxsmall"):
        st.text_area(
            title,
            key=key,
            on_change=write,
            height=68,
            placeholder="Test your own text on this feature; Ctrl+Enter to run",
            label_visibility="collapsed",
        )
        say_wrong(problem)
        if problem or not text:
            return
        api, index, step = client(), feature.index, feature.snapshot
        try:
            answer = kept_answer(
                "own-text-answer",
                (run.id, step, index, text),
                lambda: api.activations(run.id, text, top=1, features=[index], snapshot=step),
            )
        except ApiProblem as error:
            show_problem(error)
            return
        html_block(colored_text(answer))
        show_linked(_verdict(run, index, text, answer), key="own-links")


def _verdict(run: Run, index: int, text: str, answer: TextActivations) -> str:
    query = {"id": run.id, "snapshot": param("snapshot")}
    all_features = {**query, "text": text, "lock": index}
    here = link("playground", "all features of this text", all_features)
    steer = link(
        "playground", "steer with this feature", {**query, "steer": f"{index}:{STRENGTH:g}"}
    )
    largest = max(answer.features[0].activations)
    fires = f"max {number(largest)}" if largest > 0 else "does not fire on this text"
    return f'<p class="wb-muted wb-own">{fires} · {here} · {steer}</p>'
