"""Look up: the features that fire on a token or a phrase, ranked."""

from __future__ import annotations

from typing import get_args

import streamlit as st

from frontend.api.cache import client
from frontend.features.lookup import (
    COLUMNS,
    match_table,
    matched_tokens,
    suggestions,
    token_box,
    token_links,
)
from frontend.html.blocks import html_block, notice, show_linked
from frontend.shell.run_page import open_snapshot, snapshot_picker
from frontend.shell.url import bound_choice, choice_param, param
from sae_engine.schema.lookup import LookupRank, TokenMatch
from sae_engine.schema.runs import Run

MATCHES: dict[TokenMatch, str] = {
    "fold": "Ignore case and space",
    "exact": "Exact",
    "prefix": "Prefix",
    "substring": "Substring",
}
RANKS: tuple[LookupRank, ...] = get_args(LookupRank)
LIMIT = 50
_MATCH_HELP = """
- **Ignore case and space**: any case, with or without a leading space
- **Exact**: exactly this text
- **Prefix**: tokens that start with the text
- **Substring**: tokens that contain the text
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
    text = st.query_params.get("q", "")
    match: TokenMatch = choice_param("match", tuple(MATCHES)) or "fold"
    rank: LookupRank = choice_param("rank", RANKS) or "f1"
    _controls(run, text, match, rank)
    query = {"id": run.id, "snapshot": param("snapshot")}
    if not text:
        suggestions("Which features fire on a token?", "lookup", query)
        return
    answer = client().lookup(
        run.id, text, match=match, rank=rank, limit=LIMIT, snapshot=snapshot.step
    )
    html_block(f'<div class="wb-matched">{matched_tokens(answer)}</div>')
    if answer.message:
        html_block(notice(answer.message))
    if answer.suggestions:
        similar = token_links(answer.suggestions, "lookup", query)
        show_linked(f'<div class="wb-matched">Similar spellings: {similar}</div>', key="spellings")
    if answer.features:
        found = match_table(
            run.id,
            answer,
            tuple(COLUMNS),
            ranked_by=rank,
            snapshot=param("snapshot"),
            reach=12,
            css="lookup",
        )
        show_linked(found, key="lookup-table")


def _controls(run: Run, text: str, match: TokenMatch, rank: LookupRank) -> None:
    box, matching, ranking, snapshots = st.columns([1.7, 2.2, 2, 1.1], vertical_alignment="bottom")
    with box:
        token_box(text)
    with matching:
        bound_choice(
            "Match",
            "match",
            tuple(MATCHES),
            match,
            default="fold",
            label=MATCHES.__getitem__,
            show_title=True,
            tip=_MATCH_HELP,
        )
    with ranking:
        bound_choice(
            "Rank by",
            "rank",
            RANKS,
            rank,
            default="f1",
            label=str.capitalize,
            show_title=True,
            tip=_RANK_HELP,
        )
    with snapshots:
        snapshot_picker(run)


if __name__ == "__main__":
    show()
