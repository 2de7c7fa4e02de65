"""From a text to the features that fire on it: the box, what it matched, the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import streamlit as st

from frontend.api.cache import cached_run, client
from frontend.api.client import ApiProblem
from frontend.features.hits import MOST_CHARS, Lookup
from frontend.html.blocks import (
    empty_state,
    feature_link,
    html_block,
    link,
    notice,
    numeric_cells,
    panel_title,
    show_linked,
    table,
)
from frontend.html.format import count, counted, number, percent
from frontend.html.tokens import chip, escaped, example
from frontend.shell.limits import too_long
from frontend.shell.url import bound_text, param
from sae_engine.schema.lookup import FeatureMatch, LookupResult

SUGGESTIONS = (" import", " self", " return", " not")
MOST_TOKENS = 40
COMPARED_LIMIT = 20

COLUMNS: dict[str, tuple[str, Callable[[FeatureMatch], str]]] = {
    "f1": ("F1", lambda match: number(match.f1)),
    "lift": ("Lift", lambda match: number(match.lift)),
    "recall": ("Recall", lambda match: percent(match.recall)),
    "precision": ("Precision", lambda match: percent(match.precision)),
    "mean": ("Mean", lambda match: number(match.mean_activation)),
    "max": ("Max", lambda match: number(match.max_activation)),
    "count": ("Fires", lambda match: count(match.count)),
    "density": ("Density", lambda match: percent(match.density)),
}


def token_box(text: str, *, width: int | None = None) -> None:
    """The box for a token, tied to `q` in the URL; without a `width` it has a visible label."""
    with st.container(key="search"):
        bound_text(
            "Look up",
            "q",
            text,
            placeholder="import",
            search=True,
            show_title=width is None,
            max_chars=MOST_CHARS,
            width=width or "stretch",
        )


def suggestions(title: str, page: str, query: Mapping[str, object]) -> None:
    """Tokens to start with, shown while the box is empty."""
    body = f"Type a token or any text above, or try {token_links(SUGGESTIONS, page, query)}"
    show_linked(empty_state(title, body), key="suggestions")


def token_links(tokens: Sequence[str], page: str, query: Mapping[str, object]) -> str:
    """Links that look up other tokens."""
    return " ".join(link(page, chip(token), {**query, "q": token}) for token in tokens)


def matched(lookup: Lookup, answer: LookupResult) -> str:
    """What a text matched: tokens with their counts, or how often the corpus contains it."""
    if not answer.tokens:
        return ""
    tokens = "".join(
        chip(token.text, count=count(token.count), title=f"Token {token.id}")
        for token in answer.tokens[:MOST_TOKENS]
    )
    rest = len(answer.tokens) - MOST_TOKENS
    tokens = f"{tokens}{f' and {count(rest)} more' if rest > 0 else ''}"
    times = _times(lookup, answer)
    if answer.phrase:
        several = answer.occurrences != answer.count
        where = f" ({counted(answer.count, 'position')})" if several else ""
        return f"{times}{where}, ending in {tokens}"
    is_elsewhere = answer.occurrences not in (None, answer.count)
    return f"{tokens} {counted(answer.count, 'occurrence')}{f' · {times}' if is_elsewhere else ''}"


def _times(lookup: Lookup, answer: LookupResult) -> str:
    times = "once" if answer.occurrences == 1 else f"{count(answer.occurrences or 0)} times"
    if lookup.match == "regex":
        return f"{chip(lookup.text)} matches <b>{times}</b>"
    return f"The text contains {chip(lookup.in_text.text)} <b>{times}</b>"


def match_table(
    run_id: str,
    lookup: Lookup,
    answer: LookupResult,
    columns: Sequence[str],
    *,
    ranked_by: str | None = None,
    snapshot: str | None = None,
    reach: int,
    css: str,
) -> str:
    """The features with some of the `COLUMNS` and a context each; their links hold the lookup."""
    head = "".join(
        f'<th class="num{" on" if name == ranked_by else ""}">{COLUMNS[name][0]}</th>'
        for name in columns
    )
    rows = "".join(
        f"<tr><td>{feature_link(run_id, match.index, snapshot=snapshot, state=lookup.state)}"
        f'<span class="wb-sub">{escaped(match.label or "")}</span></td>'
        f"{numeric_cells(COLUMNS[name][1](match) for name in columns)}"
        f"<td>{example(match.example, reach=reach)}</td></tr>"
        for match in answer.features
    )
    head = f'<th>Feature</th>{head}<th class="wide">Strongest example</th>'
    return table(head, rows, css=css)


def compare_lookups(a: str, b: str) -> None:
    """The features of two runs that fire on one token, side by side."""
    text = st.query_params.get("q", "")
    token_box(text, width=420)
    if too_long(text, MOST_CHARS):
        return
    if not text:
        title = "Which features of the two runs fire on a token?"
        query = {"runs": param("runs"), "a": a, "b": b, "part": "tokens"}
        suggestions(title, "compare", query)
        return
    for letter, run_id, column in zip("ab", (a, b), st.columns(2, gap="large"), strict=True):
        with column:
            name = escaped(cached_run(run_id).name)
            html_block(panel_title(f"{letter.upper()} · {name}", css=f"wb-run-{letter}"))
            _lookup_of(run_id, text, key=f"tokens-{letter}")


def _lookup_of(run_id: str, text: str, *, key: str) -> None:
    lookup = Lookup(text)
    try:
        answer = client().lookup(run_id, text, limit=COMPARED_LIMIT)
    except ApiProblem as error:
        if error.unreachable:
            raise
        html_block(notice(error.problem.detail, level="warning"))
        return
    html_block(f'<div class="wb-matched">{matched(lookup, answer)}</div>')
    if answer.message:
        html_block(notice(answer.message))
    if answer.features:
        columns = ("f1", "precision", "recall")
        shown = match_table(run_id, lookup, answer, columns, reach=7, css="small lookup")
        show_linked(shown, key=key)
