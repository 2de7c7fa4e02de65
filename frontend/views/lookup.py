"""Look up: the features that fire on a token or a text, ranked."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from frontend.api.client import ApiProblem
from frontend.features.hits import LARGEST_COUNT, LEAST_COUNT, LEAST_COUNT_TITLE, RANKS, Lookup
from frontend.features.lookup import (
    COLUMNS,
    match_table,
    matched,
    suggestions,
    token_box,
    token_links,
)
from frontend.html.blocks import html_block, link, notice, section_title, show_linked
from frontend.html.format import count
from frontend.html.tokens import text_lines
from frontend.shell.run_page import open_snapshot, snapshot_picker
from frontend.shell.url import bound_choice, bound_number, bound_toggle, param, say_unknown
from sae_engine.schema.lookup import LookupResult, TokenMatch
from sae_engine.schema.runs import Run

MATCHES: dict[TokenMatch, str] = {
    "fold": "Token, else text",
    "exact": "This exact token",
    "prefix": "Tokens starting with",
    "substring": "Tokens containing",
    "text": "Text anywhere",
    "regex": "Regular expression",
}
_MATCH_HELP = """
- **Token, else text**: the token, with or without a leading space; without such a token, every
  occurrence of the text
- **This exact token**: the token with the same case and spaces
- **Tokens starting with**, **Tokens containing**: every token that starts with the text, or
  contains it
- **Text anywhere**: every occurrence of the text, however it is split into tokens
- **Regular expression**: what the expression finds in the text, in the
  [syntax of RE2](https://github.com/google/re2/wiki/Syntax)

For a text, statistics are computed on the last token of each occurrence.
"""
_RANK_HELP = """
How strongly a feature is associated with the token, over all indexed text:

- **F1**: harmonic mean of precision and recall
- **Lift**: precision divided by the token's overall frequency
- **Recall**: share of the token's occurrences on which the feature fires
- **Precision**: share of the feature's firings that are on the token
- **Max**: largest activation on the token
"""


def show() -> None:
    """The page."""
    run, snapshot = open_snapshot("lookup")
    say_unknown(match=tuple(MATCHES), rank=RANKS)
    lookup = Lookup.of_url()
    _controls(run, lookup)
    query = {"id": run.id, "snapshot": param("snapshot")}
    if lookup.problem:
        return
    if not lookup.text:
        suggestions("Which features fire on a token?", "lookup", query)
        return
    try:
        answer = lookup.answer(run.id, snapshot.step)
    except ApiProblem as error:
        if error.problem.status != 422:
            raise
        html_block(notice(error.problem.detail, level="warning"))
        return
    _show_matched(lookup, answer, query)
    if answer.message:
        html_block(notice(answer.message))
    if answer.suggestions:
        similar = token_links(answer.suggestions, "lookup", query)
        show_linked(f'<div class="wb-matched">Similar spellings: {similar}</div>', key="spellings")
    if answer.features:
        _show_features(run, lookup, answer)


def _show_matched(lookup: Lookup, answer: LookupResult, query: Mapping[str, object | None]) -> None:
    text = matched(lookup, answer)
    if not answer.phrase and answer.occurrences not in (None, answer.count):
        in_text = {**query, **lookup.in_text.state}
        text += " " + link("lookup", "Show features for all occurrences", in_text, css="wb-more")
    show_linked(f'<div class="wb-matched">{text}</div>', key="matched")
    html_block(text_lines(answer.places))


def _show_features(run: Run, lookup: Lookup, answer: LookupResult) -> None:
    shown = len(answer.features)
    if shown < answer.total:
        section_title("Features", note=f"top {count(shown)} of {count(answer.total)}")
    elif answer.places:
        section_title("Features")
    found = match_table(
        run.id,
        lookup,
        answer,
        tuple(COLUMNS),
        ranked_by=lookup.rank,
        snapshot=param("snapshot"),
        reach=12,
        css="lookup",
    )
    show_linked(found, key="lookup-table")


def _controls(run: Run, lookup: Lookup) -> None:
    box, ranking, snapshots = st.columns([1.9, 2.3, 1.1], vertical_alignment="bottom")
    with box:
        token_box(lookup.text)
    with ranking:
        bound_choice(
            "Rank by",
            "rank",
            RANKS,
            lookup.rank,
            default="f1",
            label=str.capitalize,
            show_title=True,
            tip=_RANK_HELP,
        )
    with snapshots, st.container(horizontal=True, horizontal_alignment="right"):
        snapshot_picker(run)
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        bound_choice(
            "Match",
            "match",
            tuple(MATCHES),
            lookup.match,
            default="fold",
            label=MATCHES.__getitem__,
            show_title=True,
            tip=_MATCH_HELP,
        )
        bound_number(
            LEAST_COUNT_TITLE,
            "min_count",
            1,
            LARGEST_COUNT,
            default=LEAST_COUNT,
            tip="Hide features that fire on fewer occurrences than this.",
            width=130,
        )
        if lookup.match != "exact":
            bound_toggle("Case-sensitive", "exact_case")


if __name__ == "__main__":
    show()
