"""Token text to features: what fires on a token or a phrase, ranked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import streamlit as st

from frontend.api.cache import client
from frontend.html.blocks import empty_state, html_block, link, notice, run_header, show_linked
from frontend.html.format import count, number, percent
from frontend.html.tokens import chip, escaped, example
from frontend.shell.snapshots import follow_latest, snapshot_picker
from frontend.shell.url import bound, choice_param, chosen_snapshot, name_tab, param, required_run
from sae_engine.schema.lookup import FeatureMatch, LookupRank, LookupResult, TokenMatch
from sae_engine.schema.runs import Run

MATCHES: tuple[TokenMatch, ...] = get_args(TokenMatch)
RANKS: tuple[LookupRank, ...] = get_args(LookupRank)
_RANK_HELP = """
How well a feature and the token go together, over every position of the index:

- **f1**: harmonic mean of precision and recall
- **lift**: precision over the token's overall frequency
- **recall**: share of the token's positions on which the feature fires
- **precision**: share of the feature's firings that are on the token
- **max**: largest activation on the token
"""
_MATCH_HELP = """
- **fold**: any case, with or without a leading space
- **exact**: this text and nothing else
- **prefix**: tokens that begin so
- **substring**: tokens that contain it
"""
SUGGESTIONS = (" import", " self", " return", " not")
LIMIT = 50


def show() -> None:
    """The page."""
    run = required_run()
    name_tab("Look up", run.name)
    show_linked(run_header(run, "lookup", param("snapshot")), key="head")
    snapshot = chosen_snapshot(run)
    follow_latest(run, snapshot)
    if snapshot is None:
        note = "The first snapshot appears here by itself while the run trains."
        html_block(empty_state("No features yet", note))
        return
    text = st.query_params.get("q", "")
    match: TokenMatch = choice_param("match", MATCHES) or "fold"
    rank: LookupRank = choice_param("rank", RANKS) or "f1"
    _controls(run, text, match, rank)
    if not text:
        _suggest(run)
        return
    answer = client().lookup(
        run.id, text, match=match, rank=rank, limit=LIMIT, snapshot=snapshot.step
    )
    _tokens(answer)
    if answer.message:
        html_block(notice(answer.message))
    if answer.suggestions:
        show_linked(_spellings(run, answer.suggestions), key="spellings")
    if answer.features:
        show_linked(_table(run, answer, rank), key="lookup-table")


def _controls(run: Run, text: str, match: TokenMatch, rank: LookupRank) -> None:
    box, matching, ranking, snapshots = st.columns([2.1, 1.85, 2, 1.2], vertical_alignment="bottom")
    with box, st.container(key="search"):
        key, write = bound("q", text)
        st.text_input(
            "Token or phrase",
            key=key,
            on_change=write,
            placeholder="import",
            icon=":material/search:",
            max_chars=200,
        )
    with matching:
        key, write = bound("match", match, default="fold")
        st.segmented_control(
            "Match", MATCHES, key=key, on_change=write, help=_MATCH_HELP, required=True
        )
    with ranking:
        key, write = bound("rank", rank, default="f1")
        st.segmented_control(
            "Rank by", RANKS, key=key, on_change=write, help=_RANK_HELP, required=True
        )
    with snapshots:
        snapshot_picker(run)


def _links(run: Run, words: Sequence[str]) -> str:
    return " ".join(
        link("lookup", chip(word), {"id": run.id, "q": word, "snapshot": param("snapshot")})
        for word in words
    )


def _spellings(run: Run, words: Sequence[str]) -> str:
    return f'<div class="wb-matched">Spelled nearly so: {_links(run, words)}</div>'


def _suggest(run: Run) -> None:
    links = _links(run, SUGGESTIONS)
    show_linked(
        '<div class="wb-empty"><h2>Which features fire on a token?</h2>'
        f"<p>Type a token or a short phrase above, or try {links}</p></div>",
        key="suggestions",
    )


def _tokens(answer: LookupResult) -> None:
    if answer.phrase:
        text = "".join(chip(t.text) for t in answer.tokens)
        body = f"{text} as a phrase: {count(answer.count)} positions, each that of its last token"
    else:
        text = "".join(
            chip(t.text, count=count(t.count), title=f"token {t.id}") for t in answer.tokens[:40]
        )
        more = f" and {count(len(answer.tokens) - 40)} more" if len(answer.tokens) > 40 else ""
        body = f"{text}{more} {count(answer.count)} positions in all" if answer.tokens else ""
    html_block(f'<div class="wb-matched">{body}</div>')


def _table(run: Run, answer: LookupResult, rank: LookupRank) -> str:
    columns = (
        ("f1", "F1"),
        ("lift", "Lift"),
        ("recall", "Recall"),
        ("precision", "Precision"),
        ("mean", "Mean"),
        ("max", "Max"),
        ("count", "Fires"),
        ("density", "Density"),
    )
    head = "".join(
        f'<th class="num{" on" if key == rank else ""}">{name}</th>' for key, name in columns
    )
    rows = "".join(_row(run, match) for match in answer.features)
    return (
        f'<table class="wb-table lookup"><thead><tr><th>Feature</th>{head}'
        f'<th class="wide">Strongest example</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _row(run: Run, match: FeatureMatch) -> str:
    target = {"id": run.id, "index": match.index, "snapshot": param("snapshot")}
    cells = (
        number(match.f1),
        number(match.lift),
        percent(match.recall),
        percent(match.precision),
        number(match.mean_activation),
        number(match.max_activation),
        count(match.count),
        percent(match.density),
    )
    return (
        f"<tr><td>{link('feature', str(match.index), target, css='wb-name')}"
        f'<span class="wb-sub">{escaped(match.label or "")}</span></td>'
        + "".join(f'<td class="num">{cell}</td>' for cell in cells)
        + f"<td>{example(match.example, reach=12)}</td></tr>"
    )


if __name__ == "__main__":
    show()
