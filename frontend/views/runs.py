"""Runs, the start page: a list that can be filtered and sorted, or all runs as FVU vs. L0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import streamlit as st

from frontend.api.cache import all_runs, client, known_tags
from frontend.api.runs import RunQuery
from frontend.html.blocks import empty_state, html_block, set_link, show_linked
from frontend.html.format import count, counted
from frontend.runs.actions import archive_button, delete_button, stop_button
from frontend.runs.columns import USUAL, columns_of, offered
from frontend.runs.comparison import show_pareto
from frontend.runs.list import GROUPS, first_order, runs_table
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
from sae_engine.schema.runs import Run, RunSort, RunStatus

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
MOST_GROUPED = 500
_COLUMNS = "chosen-columns"
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
    title, search, status, tag, view, new = st.columns(
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
    shown = "Archived" if flag_param("archived") else "View"
    with view, st.popover(shown, icon=":material/tune:", key="view", width="stretch"):
        _layout()
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
            "Train a sparse autoencoder on the small included language model and browse its "
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
    group = choice_param("group", tuple(GROUPS))
    runs, total, cursor = _page(sort, order) if group is None else _all(sort, order)
    picked = list_param("pick")
    shown = counted(total, "run")
    _bar(picked, shown if len(runs) == total else f"{count(len(runs))} of {shown}")
    if not runs:
        html_block(empty_state("No matching runs", "Change the filters above."))
        return
    columns = columns_of(list_param("columns") or list(USUAL))
    drawn = runs_table(runs, columns, sort=sort, order=order, picked=picked, group=group)
    show_linked(drawn, key="runs-table")
    pager(cursor, key="runs")


def _page(sort: RunSort, order: SortOrder) -> tuple[list[Run], int, str | None]:
    """One page of the matching runs, their total, and the cursor of the next page."""
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
    return page.items, page.total, page.next_cursor


def _all(sort: RunSort, order: SortOrder) -> tuple[list[Run], int, str | None]:
    """The matching runs, because a group's members may be on any page."""
    archived = flag_param("archived")
    runs = all_runs(_status(), param("q"), _tags(), archived, sort, order, MOST_GROUPED)
    total = len(runs)
    if total == MOST_GROUPED:
        query = RunQuery(status=_status(), q=param("q"), archived=archived, limit=1)
        total = client().runs(tags=_tags(), **query).total
    return runs, total, None


def _bar(picked: Sequence[str], shown: str) -> None:
    """The two views, the number of runs, and the actions on the selected ones."""
    on = param("view") == "pareto"
    views = set_link("List", {"view": None}, css="" if on else "on", tip="One row per run")
    tip = "Matching runs as points"
    views += set_link("FVU vs. L0", {"view": "pareto"}, css="on" if on else "", tip=tip)
    chosen = f" · {len(picked)} selected" if picked else ""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="runs-bar"):
        number = f'<span class="wb-count">{shown}{chosen}</span>'
        show_linked(f'<nav class="wb-views">{views}{number}</nav>', key="views")
        if picked:
            _act_on(picked)


def _layout() -> None:
    """Which list is shown, how it is grouped, and its columns.

    Not in the part that is drawn again and again, which would forget what is typed into a box.
    """
    bound_toggle("Archived runs", "archived")
    options = ["", *GROUPS]
    key, write = bound("group", choice_param("group", options) or "", default="")
    st.selectbox(
        "Group by",
        options,
        key=key,
        on_change=write,
        format_func=lambda name: name or "nothing",
        width=420,
    )
    _choose_columns()


def _choose_columns() -> None:
    titles = offered()
    known = [name for name in list_param("columns") if name in titles] or list(USUAL)
    st.session_state[_COLUMNS] = known

    def write() -> None:
        chosen = st.session_state[_COLUMNS]
        set_param("columns", None if chosen == list(USUAL) else ",".join(chosen))

    st.multiselect(
        "Columns: any setting or metric",
        list(titles),
        key=_COLUMNS,
        on_change=write,
        format_func=titles.__getitem__,
        placeholder="Usual columns",
        width=420,
    )
    if known != list(USUAL) and st.button("Usual columns", key="usual-columns"):
        set_param("columns", None)
        st.rerun()


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
    stop_button(picked, key="stop-picked")
    archive_button(
        picked,
        archived=flag_param("archived"),
        key="archive-picked",
        after=_clear,
    )
    delete_button(picked, key="delete-picked", after=_clear)
    if st.button("Clear selection", key="clear-picked", type="tertiary"):
        _clear()
        st.rerun()


def _clear() -> None:
    set_param("pick", None)


def _pareto() -> None:
    runs = all_runs(_status(), param("q"), _tags(), flag_param("archived"))
    _bar([], counted(len(runs), "run"))
    show_pareto(runs)


if __name__ == "__main__":
    show()
