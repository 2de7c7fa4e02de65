"""Playground: the features of the reader's own text, and text steered by features."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from frontend.api.cache import client, feature_row, num_features
from frontend.api.client import ApiProblem
from frontend.features.steering import steering
from frontend.features.token_chips import (
    Found,
    feature_table,
    features_of_token,
    strengths_of,
    strongest_features,
    token_chips,
    token_title,
)
from frontend.html.blocks import (
    empty_state,
    feature_link,
    html_block,
    link,
    notice,
    panel_title,
    set_link,
    show_linked,
)
from frontend.html.format import counted, number
from frontend.html.marks import mark
from frontend.html.tokens import chip, escaped
from frontend.shell.limits import say_wrong
from frontend.shell.problems import show_problem
from frontend.shell.progress import kept_answer
from frontend.shell.run_page import SHOWN_CHARS, open_snapshot, snapshot_picker
from frontend.shell.url import limited, number_param, param
from sae_engine.schema.features import FeatureRow
from sae_engine.schema.playground import TextActivations
from sae_engine.schema.runs import Run

MAX_CHARACTERS = 4000
"""Limited by the length of a URL."""
TOP = 12
SUGGESTIONS = (
    "import numpy as np\nimport os",
    "def main(args):\n    return 0",
    "The quick brown fox jumps over the lazy dog.",
)


def show() -> None:
    """The page."""
    run, snapshot = open_snapshot("playground")
    text = _text_box(run)
    strengths = strengths_of(param("steer") or "")
    if text is None:
        pass  # the box says why
    elif text:
        try:
            _analysis(run, snapshot.step, text, strengths)
        except ApiProblem as error:
            show_problem(error)
    else:
        _suggest(run)
    steering(run, snapshot.step, strengths)


def _text_box(run: Run) -> str | None:
    """The text in the box; None if it is too long, which is said below it."""
    box, snapshots = st.columns([4, 1], vertical_alignment="top")
    text = st.query_params.get("text", "")
    title = "Your text"
    key, write, problem = limited(title, "text", text, MAX_CHARACTERS, clears=("token",))
    with box:
        st.text_area(
            title,
            key=key,
            on_change=write,
            height=110,
            placeholder="Type or paste text; Ctrl+Enter to run",
        )
        say_wrong(problem)
    with snapshots:
        snapshot_picker(run, wide=True)
        st.button("Analyze", icon=":material/visibility:", key="read", width="stretch")
    return None if problem else text


def _suggest(run: Run) -> None:
    query = {"id": run.id, "snapshot": param("snapshot")}
    links = " ".join(link("playground", chip(text), query | {"text": text}) for text in SUGGESTIONS)
    title = "Which features fire on your text?"
    show_linked(empty_state(title, f"Type it above, or try {links}", css="near"), key="suggestions")


def _analysis(run: Run, step: int, text: str, strengths: Mapping[int, float]) -> None:
    """The text's tokens, and the features of the chosen token or the strongest of all."""
    last = num_features(run.id, step) - 1
    lock = number_param("lock", "lock", 0, last)
    if lock.problem:
        _no_such("feature", "lock", f"this run's features are 0 to {last}")
    highlighted = None if lock.value is None else int(lock.value)
    watched = [] if highlighted is None else [highlighted]
    api = client()
    answer = kept_answer(
        "playground-answer",
        (run.id, step, text, highlighted),
        lambda: api.activations(run.id, text, top=TOP, features=watched, snapshot=step),
    )
    chosen = _chosen_token(answer)
    left, right = st.columns([1, 1.15], gap="large")
    with left:
        legend = f'<p class="wb-muted">{_legend(run, answer, highlighted)}</p>'
        show_linked(legend + token_chips(answer, chosen=chosen), key="tokens")
    if chosen is None:
        found, title = strongest_features(answer, TOP), panel_title("Strongest features")
    else:
        found = features_of_token(answer.tokens[chosen], chosen)
        title = token_title(answer.tokens[chosen], chosen)
    with right:
        if not found:
            html_block(title + notice("No features fire here."))
            return
        table = feature_table(
            found,
            answer,
            _rows(run, step, found),
            run_id=run.id,
            snapshot=param("snapshot"),
            highlighted=highlighted,
            strengths=strengths,
            show_token=chosen is None,
        )
        show_linked(title + table, key="token-features")


def _chosen_token(answer: TextActivations) -> int | None:
    """The place of the token that the URL names; None if it names none that has features."""
    last = len(answer.tokens) - 1
    entry = number_param("token", "token", 0, last)
    if entry.problem:
        _no_such("token", "token", f"this text has tokens 0 to {last}")
    if entry.value is None or answer.tokens[int(entry.value)].excluded is not None:
        return None
    return int(entry.value)


def _no_such(noun: str, name: str, what_exists: str) -> None:
    """Say that a number of the URL names nothing; without it the page shows the whole text."""
    given = (param(name) or "")[:SHOWN_CHARS]
    body = escaped(f"There is no {noun} {given}: {what_exists}. ")
    instead = set_link("Show the whole text", {name: None}, css="wb-more", tip="")
    show_linked(f'<div class="wb-notice warning">{body}{instead}</div>', key=f"no-{name}")


def _legend(run: Run, answer: TextActivations, highlighted: int | None) -> str:
    """What the colors mean."""
    num_tokens = counted(sum(token.excluded is None for token in answer.tokens), "token")
    if highlighted is None:
        return (
            f"{num_tokens}, colored by the sum of all activations. Click a token to see its "
            "features."
        )
    name = feature_link(
        run.id,
        highlighted,
        snapshot=param("snapshot"),
        label_html=f"feature {highlighted}",
        css="wb-index",
    )
    marks = mark(answer.labels.get(highlighted), starred=highlighted in answer.starred)
    here = number(max(answer.features[0].activations, default=0.0))
    overall = number(answer.features[0].max_activation)
    return f"{num_tokens}, colored by {name} {marks}; max {here} here, {overall} in the index"


def _rows(run: Run, step: int, found: list[Found]) -> dict[int, FeatureRow]:
    rows = {f.feature: feature_row(run.id, step, f.feature) for f in found}
    return {index: row for index, row in rows.items() if row is not None}


if __name__ == "__main__":
    show()
