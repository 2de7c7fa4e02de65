"""A run's features: sortable, filterable, page by page, each with a glimpse of what it is about."""

from __future__ import annotations

from typing import get_args

import streamlit as st

from frontend.api.cache import cached_densities, client
from frontend.charts.overview import density_figure
from frontend.charts.plot import show_figure
from frontend.features.labeling import label_menu, score_note
from frontend.html.blocks import empty_state, href, html_block, link, run_header, show_linked
from frontend.html.format import count, density, number, percent
from frontend.html.tokens import chips, escaped, example
from frontend.shell.downloads import download_menu
from frontend.shell.navigation import page_button
from frontend.shell.pager import pager
from frontend.shell.snapshots import follow_latest, snapshot_picker
from frontend.shell.url import (
    bound,
    choice_param,
    chosen_snapshot,
    float_param,
    name_tab,
    param,
    required_run,
    search_box,
    set_param,
)
from sae_engine.schema.features import FeaturePage, FeatureRow, FeatureSort, FeatureState, SortOrder
from sae_engine.schema.runs import Run, Snapshot

PAGE_SIZE = 50
SORTS: tuple[FeatureSort, ...] = get_args(FeatureSort)
STATES: tuple[FeatureState, ...] = get_args(FeatureState)
ORDERS: tuple[SortOrder, ...] = get_args(SortOrder)
_TITLES: dict[FeatureSort, str] = {
    "index": "Feature",
    "density": "Density",
    "max_activation": "Max",
    "label": "Label",
}


def show() -> None:
    """The page."""
    run = required_run()
    name_tab("Features", run.name)
    header, search = st.columns([3.2, 1.2], vertical_alignment="bottom")
    with header:
        show_linked(run_header(run, "features", param("snapshot")), key="head")
    with search:
        search_box(run)
    snapshot = chosen_snapshot(run)
    follow_latest(run, snapshot)
    if snapshot is None:
        _none_yet(run)
        return
    sort: FeatureSort = choice_param("sort", SORTS) or "max_activation"
    order: SortOrder = choice_param("order", ORDERS) or _first_order(sort)
    state: FeatureState | None = choice_param("state", STATES)
    lowest, highest = float_param("min_density"), float_param("max_density")
    page = client().features(
        run.id,
        snapshot=snapshot.step,
        sort=sort,
        order=order,
        min_density=None if lowest is None else min(max(lowest, 0), 1),
        max_density=None if highest is None else min(max(highest, 0), 1),
        state=state,
        q=param("q"),
        limit=PAGE_SIZE,
        cursor=param("cursor"),
    )
    _densities(run, snapshot, lowest, highest)
    _controls(run, state, page)
    if not page.items:
        html_block(empty_state("No feature matches", "Widen the filter above."))
        return
    show_linked(_table(run, page, sort, order), key="features-table")
    pager(page.next_cursor, key=f"features:{run.id}")


def _first_order(sort: FeatureSort) -> SortOrder:
    return "asc" if sort in ("index", "label") else "desc"


def _none_yet(run: Run) -> None:
    text = "The first snapshot appears here by itself while the run trains."
    html_block(empty_state("No features yet", text))
    page_button("Watch it train", "run", key="watch", primary=True, id=run.id)


def _densities(run: Run, snapshot: Snapshot, lowest: float | None, highest: float | None) -> None:
    """All features by density; a bar or a stretch chooses which ones the list shows."""
    data = cached_densities(run.id, snapshot.step)
    if not any(data.counts):
        return
    figure = density_figure(data, lowest=lowest, highest=highest)
    query = {name: param(name) for name in ("snapshot", "sort", "order", "state", "q")}
    address = href("features", {"id": run.id, **query})
    show_figure(
        figure,
        key="densities",
        range={"address": address, "low": "min_density", "high": "max_density"},
    )


def _density_bounds(lowest: float | None, highest: float | None) -> None:
    """Two boxes that hold in percent what the URL holds as shares."""
    for name, title, value in (
        ("min_density", "from", lowest),
        ("max_density", "to", highest),
    ):
        key = f"percent:{name}"
        st.session_state[key] = None if value is None else min(max(value, 0), 1) * 100

        def write(name: str = name, key: str = key) -> None:
            chosen: float | None = st.session_state[key]
            set_param(name, None if chosen is None else f"{chosen / 100:.6g}")
            set_param("cursor", None)

        st.number_input(
            f"Density {title}, in percent",
            min_value=0.0,
            max_value=100.0,
            value=None,
            format="%.6g",
            key=key,
            on_change=write,
            placeholder=f"{title}, %",
            label_visibility="collapsed",
            width=90,
        )


def _controls(run: Run, state: str | None, page: FeaturePage) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        snapshot_picker(run)
        key, write = bound("state", state or "all", default="all")
        st.segmented_control(
            "State",
            ("all", *STATES),
            key=key,
            on_change=write,
            label_visibility="collapsed",
            required=True,
        )
        key, write = bound("q", param("q") or "")
        st.text_input(
            "Filter",
            key=key,
            on_change=write,
            placeholder="Label, token or #index",
            label_visibility="collapsed",
            width=190,
        )
        _density_bounds(float_param("min_density"), float_param("max_density"))
        html_block(f'<span class="wb-muted">{count(page.total)} features</span>')
        with st.container(horizontal=True, width="content", gap="small"):
            label_menu(run, page.snapshot)
            download_menu(run, param("snapshot"))


def _table(run: Run, page: FeaturePage, sort: FeatureSort, order: SortOrder) -> str:
    head = "".join(
        [
            _heading(run, "index", sort, order),
            _heading(run, "density", sort, order),
            _heading(run, "max_activation", sort, order),
            "<th>State</th>",
            _heading(run, "label", sort, order),
            "<th>Top tokens</th>",
            '<th class="wide">Strongest example</th>',
        ]
    )
    labeled = [row.index for row in page.items if row.label]
    written = {w.feature: w for w in client().labels(run.id, labeled)} if labeled else {}
    rows = "".join(_row(run, row, score_note(written.get(row.index))) for row in page.items)
    return (
        f'<table class="wb-table features"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _heading(run: Run, name: FeatureSort, sort: FeatureSort, order: SortOrder) -> str:
    now = name == sort
    turned: SortOrder = "asc" if order == "desc" else "desc"
    wanted = turned if now else _first_order(name)
    arrow = (" ↓" if order == "desc" else " ↑") if now else ""
    query = {
        "id": run.id,
        "snapshot": param("snapshot"),
        "sort": name,
        "order": wanted,
        "state": param("state"),
        "min_density": param("min_density"),
        "max_density": param("max_density"),
        "q": param("q"),
    }
    return f"<th>{link('features', _TITLES[name] + arrow, query)}</th>"


def _row(run: Run, row: FeatureRow, note: str) -> str:
    target = {"id": run.id, "index": row.index, "snapshot": param("snapshot")}
    return (
        f"<tr><td>{link('feature', str(row.index), target, css='wb-name')}</td>"
        f'<td class="num" title="{density(row.density)}">{percent(row.density.fraction)}</td>'
        f'<td class="num">{number(row.max_activation)}</td>'
        f'<td><span class="wb-state {row.state}">{row.state}</span></td>'
        f'<td class="label">{escaped(row.label or "")}{note}</td>'
        f'<td class="tops">{chips(row.top_tokens[:4])}</td>'
        f"<td>{example(row.example, reach=14)}</td></tr>"
    )


if __name__ == "__main__":
    show()
