"""The features of two runs that go with one token, side by side."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import cached_run, client
from frontend.api.client import ApiProblem
from frontend.html.blocks import html_block, link, notice, show_linked
from frontend.html.format import count, number
from frontend.html.tokens import chip, escaped, example
from frontend.shell.url import bound, param
from sae_engine.schema.lookup import FeatureMatch, LookupResult

LIMIT = 20
SUGGESTIONS = (" import", " self", " return", " not")


def show_tokens(a: str, b: str) -> None:
    """A box for a token, and what each run makes of it."""
    text = st.query_params.get("q", "")
    with st.container(key="search"):
        key, write = bound("q", text)
        st.text_input(
            "Token or phrase",
            key=key,
            on_change=write,
            placeholder="import",
            icon=":material/search:",
            max_chars=200,
            label_visibility="collapsed",
            width=420,
        )
    if not text:
        kept = {"runs": param("runs"), "a": a, "b": b, "part": "tokens"}
        links = " ".join(link("compare", chip(w), kept | {"q": w}) for w in SUGGESTIONS)
        show_linked(
            '<div class="wb-empty"><h2>Which features fire on a token in either run?</h2>'
            f"<p>Type a token or a short phrase above, or try {links}</p></div>",
            key="suggestions",
        )
        return
    for letter, run_id, column in zip("ab", (a, b), st.columns(2, gap="large"), strict=True):
        with column:
            name = escaped(cached_run(run_id).name)
            html_block(f'<h3 class="wb-panel wb-run-{letter}">{letter.upper()} · {name}</h3>')
            try:
                answer = client().lookup(run_id, text, limit=LIMIT)
            except ApiProblem as error:
                if error.unreachable:
                    raise
                html_block(notice(error.problem.detail, level="warning"))
                continue
            html_block(_tokens(answer))
            if answer.message:
                html_block(notice(answer.message))
            if answer.features:
                show_linked(_table(run_id, answer), key=f"tokens-{letter}")


def _tokens(answer: LookupResult) -> str:
    shown = "".join(chip(t.text, count=count(t.count)) for t in answer.tokens[:8])
    return f'<div class="wb-matched">{shown} {count(answer.count)} positions</div>'


def _table(run_id: str, answer: LookupResult) -> str:
    head = "".join(f'<th class="num">{name}</th>' for name in ("F1", "Precision", "Recall"))
    rows = "".join(_row(run_id, match) for match in answer.features)
    return (
        f'<table class="wb-table small lookup"><thead><tr><th>Feature</th>{head}'
        f'<th class="wide">Strongest example</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _row(run_id: str, match: FeatureMatch) -> str:
    name = link("feature", str(match.index), {"id": run_id, "index": match.index}, css="wb-name")
    values = (match.f1, match.precision, match.recall)
    cells = "".join(f'<td class="num">{number(value)}</td>' for value in values)
    return (
        f'<tr><td>{name}<span class="wb-sub">{escaped(match.label or "")}</span></td>{cells}'
        f"<td>{example(match.example, reach=7)}</td></tr>"
    )
