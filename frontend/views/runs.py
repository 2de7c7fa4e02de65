"""Start page: every run with its state and quality, newest first; FVU against L0 of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import streamlit as st

from frontend.api.cache import all_runs, client, forget_cached, known_tags
from frontend.html.blocks import empty_state, html_block, set_link, show_linked
from frontend.html.format import count
from frontend.runs.compared import show_pareto
from frontend.runs.list import first_order, runs_table
from frontend.shell.navigation import page_button
from frontend.shell.pager import pager
from frontend.shell.url import (
    attempt,
    bound,
    choice_param,
    list_param,
    live,
    param,
    set_param,
)
from sae_engine.schema.features import SortOrder
from sae_engine.schema.runs import RunPage, RunPatch, RunSort, RunStatus

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
MOST_COMPARED = 8
ANY_STATUS, ANY_TAG = "any status", "any tag"


def show() -> None:
    """The page."""
    if not _filtered() and not _some(archived=False) and not _some(archived=True):
        _welcome()
        return
    _filters()
    if param("view") == "pareto":
        live(_pareto, active=True)
    else:
        live(_list, active=True)


def _filtered() -> bool:
    return any(param(name) for name in ("q", "status", "tag", "archived"))


def _some(*, archived: bool) -> bool:
    return bool(client().runs(archived=archived, limit=1).items)


def _filters() -> None:
    """Title, the boxes that choose runs, and the button for a new one."""
    title, search, status, tag, archived, new = st.columns(
        [1.5, 3, 1.6, 1.6, 1.2, 1.4], vertical_alignment="center"
    )
    with title:
        html_block('<h1 class="wb-title">Runs</h1>')
    with search:
        key, write = bound("q", param("q") or "")
        st.text_input(
            "Filter by text",
            key=key,
            on_change=write,
            placeholder="Name, tag, note or id",
            icon=":material/search:",
            label_visibility="collapsed",
        )
    with status:
        _choice("status", STATUSES, ANY_STATUS, "Status")
    with tag:
        _choice("tag", known_tags(), ANY_TAG, "Tag")
    with archived:
        key, write = bound("archived", _archived(), default=False)
        st.toggle("Archived", key=key, on_change=write)
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


def _archived() -> bool:
    return param("archived") in ("1", "True")


def _status() -> RunStatus | None:
    return choice_param("status", STATUSES)


def _tags() -> list[str]:
    tag = param("tag")
    return [] if tag is None else [tag]


def _welcome() -> None:
    html_block(
        empty_state(
            "No runs yet",
            "Train a sparse autoencoder on a small embedded language model and browse what its "
            "features mean while they form. Everything works offline, on a laptop.",
        )
    )
    _, middle, _ = st.columns([1, 1.2, 1])
    with middle:
        page_button(
            "Train your first SAE (about two minutes)",
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
        archived=_archived(),
        sort=sort,
        order=order,
        limit=PAGE_SIZE,
        cursor=param("cursor"),
    )
    picked = list_param("pick")
    _bar(picked, _shown(page))
    if not page.items:
        html_block(empty_state("No run matches", "Change the text, the status or the tag above."))
        return
    show_linked(runs_table(page.items, sort=sort, order=order, picked=picked), key="runs-table")
    pager(page.next_cursor, key="runs")


def _shown(page: RunPage) -> str:
    if len(page.items) == page.total:
        return f"{count(page.total)} run{'s' if page.total != 1 else ''}"
    return f"{count(len(page.items))} of {count(page.total)} runs"


def _bar(picked: Sequence[str], shown: str) -> None:
    """How many runs there are, what can be done to the marked ones, and the two views."""
    on = param("view") == "pareto"
    views = set_link("List", {"view": None}, css="" if on else "on", note="A row for each run")
    note = "The runs that match, as points"
    views += set_link("FVU against L0", {"view": "pareto"}, css="on" if on else "", note=note)
    chosen = f" · {len(picked)} marked" if picked else ""
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
        tip="Side by side, two to eight runs",
        enabled=2 <= len(picked) <= MOST_COMPARED,
        runs=",".join(picked),
    )
    text = "Take out of the archive" if _archived() else "Archive"
    if st.button(text, icon=":material/archive:", key="archive-picked"):
        attempt(lambda: _put_away(picked, not _archived()))
        forget_cached()
        set_param("pick", None)
        st.rerun()
    if st.button("Clear", key="clear-picked", type="tertiary"):
        set_param("pick", None)
        st.rerun()


def _put_away(run_ids: Sequence[str], archived: bool) -> None:
    patch = RunPatch.model_validate({"archived": archived})
    for run_id in run_ids:
        client().update_run(run_id, patch)


def _pareto() -> None:
    runs = all_runs(_status(), param("q"), _tags(), _archived())
    _bar([], f"{count(len(runs))} run{'s' if len(runs) != 1 else ''}")
    show_pareto(runs)


if __name__ == "__main__":
    show()
