"""Runs, the start page: a list that can be filtered and sorted, or all runs as FVU vs. L0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import streamlit as st

from frontend.api.cache import all_runs, client, known_tags
from frontend.html.blocks import empty_state, html_block, set_link, show_linked
from frontend.html.format import count, counted
from frontend.runs.actions import archive_button
from frontend.runs.comparison import show_pareto
from frontend.runs.list import first_order, runs_table
from frontend.shell.navigation import page_button
from frontend.shell.pager import pager
from frontend.shell.problems import live
from frontend.shell.url import (
    bound,
    bound_text,
    bound_toggle,
    choice_param,
    flag_param,
    list_param,
    param,
    set_param,
)
from sae_engine.schema.analysis import MAX_COMPARED_RUNS
from sae_engine.schema.features import SortOrder
from sae_engine.schema.runs import RunPage, RunSort, RunStatus

STATUSES: tuple[RunStatus, ...] = (
    "running",
    "queued",
    "finished",
    "stopped",
    "failed",
    "interrupted",
)
SORTS: tuple[RunSort, ...] = get_args(RunSort)
ORDERS: tuple[SortOrder, ...] = get_args(SortOrder)
PAGE_SIZE = 50
ANY_STATUS, ANY_TAG = "Any status", "Any tag"


def show() -> None:
    """The page."""
    filtered = any(param(name) for name in ("q", "status", "tag", "archived"))
    if not filtered and not _has_runs(archived=False) and not _has_runs(archived=True):
        _welcome()
        return
    _filters()
    if param("view") == "pareto":
        live(_pareto, active=True)
    else:
        live(_list, active=True)


def _has_runs(*, archived: bool) -> bool:
    return bool(client().runs(archived=archived, limit=1).items)


def _filters() -> None:
    """Title, the boxes that filter the runs, and the button for a new run."""
    title, search, status, tag, archived, new = st.columns(
        [1.5, 3, 1.6, 1.6, 1.2, 1.4], vertical_alignment="center"
    )
    with title:
        html_block('<h1 class="wb-title">Runs</h1>')
    with search:
        hint = "Name, tag, note or ID"
        bound_text("Filter by text", "q", param("q") or "", placeholder=hint, search=True)
    with status:
        _choice("status", STATUSES, ANY_STATUS, "Status")
    with tag:
        _choice("tag", known_tags(), ANY_TAG, "Tag")
    with archived:
        bound_toggle("Archived", "archived")
    with new:
        page_button(
            "New run", "launch", key="new", icon=":material/add:", primary=True, width="stretch"
        )


def _choice(name: str, choices: Sequence[str], any_of_them: str, title: str) -> None:
    chosen = param(name)
    given = [] if chosen is None or chosen in choices else [chosen]
    key, write = bound(name, chosen or any_of_them, default=any_of_them)
    options = [any_of_them, *choices, *given]
    st.selectbox(title, options, key=key, on_change=write, label_visibility="collapsed")


def _status() -> RunStatus | None:
    return choice_param("status", STATUSES)


def _tags() -> list[str]:
    tag = param("tag")
    return [] if tag is None else [tag]


def _welcome() -> None:
    html_block(
        empty_state(
            "No runs yet",
            "Train a sparse autoencoder on the small embedded language model and browse its "
            "features while they form. Everything works offline, on a laptop.",
        )
    )
    _, middle, _ = st.columns([1, 1.2, 1])
    with middle:
        page_button(
            "Train your first SAE (one to two minutes)",
            "launch",
            key="first",
            icon=":material/play_arrow:",
            primary=True,
            width="stretch",
            preset="tiny",
        )


def _list() -> None:
    sort: RunSort = choice_param("sort", SORTS) or "created"
    order: SortOrder = choice_param("order", ORDERS) or first_order(sort)
    page = client().runs(
        status=_status(),
        q=param("q"),
        tags=_tags(),
        archived=flag_param("archived"),
        sort=sort,
        order=order,
        limit=PAGE_SIZE,
        cursor=param("cursor"),
    )
    picked = list_param("pick")
    _bar(picked, _shown(page))
    if not page.items:
        html_block(empty_state("No matching runs", "Change the filters above."))
        return
    show_linked(runs_table(page.items, sort=sort, order=order, picked=picked), key="runs-table")
    pager(page.next_cursor, key="runs")


def _shown(page: RunPage) -> str:
    if len(page.items) == page.total:
        return counted(page.total, "run")
    return f"{count(len(page.items))} of {counted(page.total, 'run')}"


def _bar(picked: Sequence[str], shown: str) -> None:
    """The two views, the number of runs, and the actions on the selected ones."""
    on = param("view") == "pareto"
    views = set_link("List", {"view": None}, css="" if on else "on", tip="One row per run")
    tip = "Matching runs as points"
    views += set_link("FVU vs. L0", {"view": "pareto"}, css="on" if on else "", tip=tip)
    chosen = f" · {len(picked)} selected" if picked else ""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="runs-bar"):
        number = f'<span class="wb-muted">{shown}{chosen}</span>'
        show_linked(f'<nav class="wb-views">{views}{number}</nav>', key="views")
        if picked:
            _act_on(picked)


def _act_on(picked: Sequence[str]) -> None:
    page_button(
        "Compare",
        "compare",
        key="compare-picked",
        icon=":material/compare:",
        tip=f"Two to {MAX_COMPARED_RUNS} runs side by side",
        enabled=2 <= len(picked) <= MAX_COMPARED_RUNS,
        runs=",".join(picked),
    )
    archive_button(
        picked,
        archived=flag_param("archived"),
        key="archive-picked",
        after=lambda: set_param("pick", None),
    )
    if st.button("Clear selection", key="clear-picked", type="tertiary"):
        set_param("pick", None)
        st.rerun()


def _pareto() -> None:
    runs = all_runs(_status(), param("q"), _tags(), flag_param("archived"))
    _bar([], counted(len(runs), "run"))
    show_pareto(runs)


if __name__ == "__main__":
    show()
