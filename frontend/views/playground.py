"""A person's own text: its tokens, their features, and how it goes on when they are steered."""

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
from frontend.html.blocks import empty_state, html_block, link, notice, run_header, show_linked
from frontend.html.format import count, number
from frontend.html.tokens import chip, escaped
from frontend.shell.snapshots import follow_latest, snapshot_picker
from frontend.shell.url import (
    bound,
    chosen_snapshot,
    int_param,
    name_tab,
    param,
    required_run,
    set_param,
    show_problem,
)
from frontend.shell.warm_up import with_progress
from sae_engine.schema.features import FeatureRow
from sae_engine.schema.playground import TextActivations
from sae_engine.schema.runs import Run

# What an address can carry.
MAX_CHARACTERS = 4000
TOP = 12
SUGGESTIONS = (
    "import numpy as np\nimport os",
    "def main(args):\n    return 0",
    "The quick brown fox jumps over the lazy dog.",
)


def show() -> None:
    """The page."""
    run = required_run()
    name_tab("Playground", run.name)
    show_linked(run_header(run, "playground", param("snapshot")), key="head")
    snapshot = chosen_snapshot(run)
    follow_latest(run, snapshot)
    if snapshot is None:
        note = "The first snapshot appears here by itself while the run trains."
        html_block(empty_state("No features yet", note))
        return
    text = st.query_params.get("text", "")[:MAX_CHARACTERS]
    _text_box(run, text)
    strengths = strengths_of(param("steer") or "")
    if text:
        try:
            _reading(run, snapshot.step, text, strengths)
        except ApiProblem as error:
            show_problem(error)
    else:
        _suggest(run)
    steering(run, snapshot.step, strengths)


def _text_box(run: Run, text: str) -> None:
    box, snapshots = st.columns([4, 1], vertical_alignment="top")
    key, write = bound("text", text)

    def changed() -> None:
        write()
        set_param("token", None)

    with box:
        st.text_area(
            "Your text",
            key=key,
            on_change=changed,
            height=110,
            max_chars=MAX_CHARACTERS,
            placeholder="Type or paste a text; Ctrl + Enter reads it",
        )
    with snapshots:
        html_block('<p class="wb-label">Snapshot</p>')
        snapshot_picker(run)
        st.button("Read", icon=":material/visibility:", key="read", width=190)


def _suggest(run: Run) -> None:
    links = " ".join(
        link("playground", chip(text), {"id": run.id, "text": text, "snapshot": param("snapshot")})
        for text in SUGGESTIONS
    )
    show_linked(
        '<div class="wb-empty near"><h2>Which features does your text have?</h2>'
        f"<p>Type it above, or try {links}</p></div>",
        key="suggestions",
    )


def _reading(run: Run, step: int, text: str, strengths: Mapping[int, float]) -> None:
    locked = int_param("lock")
    if locked is not None and locked >= num_features(run.id, step):
        locked = None
    answer = _read(run, step, text, locked)
    chosen = int_param("token")
    if chosen is not None and (
        chosen >= len(answer.tokens) or answer.tokens[chosen].excluded is not None
    ):
        chosen = None
    left, right = st.columns([1, 1.15], gap="large")
    with left:
        show_linked(_legend(run, answer, locked) + token_chips(answer, chosen=chosen), key="tokens")
    if chosen is None:
        found, title = strongest_features(answer, TOP), '<h3 class="wb-panel">Strongest</h3>'
    else:
        found = features_of_token(answer.tokens[chosen], chosen)
        title = token_title(answer.tokens[chosen], chosen)
    with right:
        if not found:
            html_block(title + notice("No feature is active here."))
            return
        table = feature_table(
            found,
            answer,
            _rows(run, step, found),
            run_id=run.id,
            snapshot=param("snapshot"),
            locked=locked,
            strengths=strengths,
            show_token=chosen is None,
        )
        show_linked(title + table, key="token-features")


def _legend(run: Run, answer: TextActivations, locked: int | None) -> str:
    if locked is None:
        what = "colored by the sum of all activations; click a token for its features"
    else:
        query = {"id": run.id, "index": locked, "snapshot": param("snapshot")}
        label = answer.labels.get(locked, "")
        name = link("feature", f"feature {locked}", query, css="wb-index")
        largest = max(answer.features[0].activations, default=0.0)
        most = number(answer.features[0].max_activation)
        what = (
            f"colored by {name} {escaped(label)}; at most {number(largest)} here, {most} in the "
            "index"
        )
    ordinary = sum(token.excluded is None for token in answer.tokens)
    return f'<p class="wb-muted">{count(ordinary)} tokens, {what}</p>'


def _read(run: Run, step: int, text: str, locked: int | None) -> TextActivations:
    """The answer to the same question is kept; asking anew would flicker."""
    question = (run.id, step, text, locked)
    held: tuple[object, TextActivations] | None = st.session_state.get("reading")
    if held is not None and held[0] == question:
        return held[1]
    api = client()
    features = [] if locked is None else [locked]
    answer = with_progress(
        lambda: api.activations(run.id, text, top=TOP, features=features, snapshot=step)
    )
    st.session_state["reading"] = (question, answer)
    return answer


def _rows(run: Run, step: int, found: list[Found]) -> dict[int, FeatureRow]:
    rows = {f.feature: feature_row(run.id, step, f.feature) for f in found}
    return {index: row for index, row in rows.items() if row is not None}


if __name__ == "__main__":
    show()
