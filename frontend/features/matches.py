"""The features of two runs matched by their decoder rows: how many match, how well, which."""

from __future__ import annotations

from typing import get_args

import streamlit as st

from frontend.api.cache import cached_run, client
from frontend.api.client import ApiProblem
from frontend.charts.histograms import cosine_figure
from frontend.charts.plot import show_figure
from frontend.features.details import ABOUT_COSINES
from frontend.html.blocks import (
    empty_state,
    explanation,
    feature_link,
    html_block,
    link,
    notice,
    show_linked,
    table,
)
from frontend.html.format import count, percent
from frontend.html.marks import mark
from frontend.html.tokens import chips, example
from frontend.shell.limits import say_wrong
from frontend.shell.pager import list_top, no_such_page, pager
from frontend.shell.progress import computed
from frontend.shell.url import bound, bound_choice, choice_param, number_param, param, say_unknown
from sae_engine.schema.analysis import (
    MATCH_THRESHOLD,
    FeatureComparison,
    MatchedFeatures,
    MatchSection,
)
from sae_engine.schema.features import FeatureRow, SortOrder

SECTIONS: tuple[MatchSection, ...] = get_args(MatchSection)
ORDERS: tuple[SortOrder, ...] = get_args(SortOrder)
PAGE_SIZE = 50
_HELP = """
A feature's nearest feature is the one in the other run whose decoder row has the highest cosine to
its own.

- **Mutual**: each is the other's nearest, with a cosine of at least the threshold
- **Only in A**, **Only in B**: no feature of the other run reaches the threshold

Features that never fire are left out.
"""


def show_matches(a: str, b: str) -> None:
    """How the features of two runs match, and one page of one section of them."""
    section: MatchSection = choice_param("section", SECTIONS) or "mutual"
    order: SortOrder = choice_param("order", ORDERS) or _first_order(section)
    say_unknown(section=SECTIONS, order=ORDERS)
    entry = number_param("threshold", "Threshold", 0, 1, default=MATCH_THRESHOLD, whole=False)
    say_wrong(entry.problem)
    threshold = MATCH_THRESHOLD if entry.value is None else float(entry.value)
    try:
        found = computed(
            lambda: client().compare_features(
                a,
                b,
                section=section,
                threshold=threshold,
                order=order,
                limit=PAGE_SIZE,
                cursor=param("cursor"),
            ),
            key=f"matches:{a}:{b}",
            doing="Matching features",
        )
    except ApiProblem as error:
        if error.problem.status == 422 and param("cursor") is not None:
            no_such_page()
            return
        if error.problem.status != 409:
            raise
        html_block(notice(error.problem.detail, title="These features cannot be matched"))
        return
    if found is None:
        return
    chart, side = st.columns([2.4, 1], gap="large", vertical_alignment="center")
    with chart:
        names = [f"{letter} · {cached_run(i).name}" for letter, i in (("A", a), ("B", b))]
        show_figure(
            cosine_figure(found, names),
            key="chart-cosines",
            about="Cosines to the nearest features",
        )
    with side:
        key, write = bound("threshold", threshold, default=MATCH_THRESHOLD)
        st.slider("Threshold", 0.0, 1.0, step=0.05, key=key, on_change=write, help=_HELP)
        html_block(_summary(found) + explanation("What do 0.3 and 0.9 mean?", ABOUT_COSINES))
    sizes = {
        "mutual": f"Mutual {count(found.num_mutual)}",
        "only_a": f"Only in A {count(found.num_only_a)}",
        "only_b": f"Only in B {count(found.num_only_b)}",
    }
    bound_choice("Section", "section", SECTIONS, section, default="mutual", label=sizes.__getitem__)
    total = {
        "mutual": found.num_mutual,
        "only_a": found.num_only_a,
        "only_b": found.num_only_b,
    }[section]
    if total and not found.items:
        no_such_page()
        return
    if not found.items:
        html_block(empty_state("No features in this section", "Try another threshold."))
        return
    list_top("matches")
    show_linked(_table(a, b, found, section, order), key="matches-table")
    pager(
        found.next_cursor,
        key=f"matches:{a}:{b}:{section}",
        shown=len(found.items),
        total=total,
    )


def _first_order(section: MatchSection) -> SortOrder:
    return "desc" if section == "mutual" else "asc"


def _summary(found: FeatureComparison) -> str:
    rows = (
        ("Mutual matches", found.num_mutual, min(found.num_features)),
        ("Only in A", found.num_only_a, found.num_features[0]),
        ("Only in B", found.num_only_b, found.num_features[1]),
    )
    facts = "".join(
        f"<dt>{name}</dt><dd>{count(num)} of {count(of)} ({percent(num / of if of else None)})</dd>"
        for name, num, of in rows
    )
    return f'<dl class="wb-facts">{facts}</dl>'


def _table(
    a: str, b: str, found: FeatureComparison, section: MatchSection, order: SortOrder
) -> str:
    kept: dict[str, object | None] = {"runs": param("runs"), "a": a, "b": b, "part": "features"}
    kept |= {"section": section, "threshold": param("threshold")}
    turned, arrow = ("asc", "↓") if order == "desc" else ("desc", "↑")
    nearest_a = "Nearest in A" if section == "only_b" else "A"
    nearest_b = "Nearest in B" if section == "only_a" else "B"
    head = (
        f"<th>{link('compare', f'Cosine {arrow}', kept | {'order': turned})}</th>"
        f'<th class="wb-run-a" colspan="2">{nearest_a}</th>'
        f'<th class="wb-run-b" colspan="2">{nearest_b}</th>'
    )
    rows = "".join(_row(a, b, item, section) for item in found.items)
    return table(head, rows, css="matches")


def _row(a: str, b: str, item: MatchedFeatures, section: MatchSection) -> str:
    one_way = "" if item.mutual or section == "mutual" else ' title="Not mutual"'
    return (
        f'<tr><td class="num"{one_way}>{item.cosine:.3f}</td>'
        f"{_cells(a, item.a)}{_cells(b, item.b)}</tr>"
    )


def _cells(run_id: str, row: FeatureRow) -> str:
    state = f'<span class="wb-state {row.state}">{row.state}</span>' if row.state != "alive" else ""
    snippet = example(row.example, reach=8)
    shown = feature_link(run_id, row.index, label_html=snippet, css="wb-example")
    marks = mark(row.label, starred=row.starred)
    return (
        f'<td><div class="wb-matchhead">{feature_link(run_id, row.index, css="wb-feature")}{state}'
        f"{marks}<small>{percent(row.density.fraction)}</small></div>"
        f"{chips(row.top_tokens[:3])}</td>"
        f'<td class="example">{shown}</td>'
    )
