"""Features: a run's features in a list that can be sorted, filtered and paged."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import streamlit as st

from frontend.api.cache import cached_densities, client
from frontend.api.client import ApiProblem
from frontend.charts.histograms import density_figure
from frontend.charts.plot import show_figure
from frontend.features.labeling import label_menu, score_note
from frontend.features.listing import (
    MARKS,
    MOST_FILTER_CHARS,
    ORDERS,
    SORTS,
    STATES,
    Listing,
    first_order,
)
from frontend.features.selection import (
    carry_out,
    pick_all,
    pick_box,
    picked_features,
    selection_bar,
    star_button,
)
from frontend.html.blocks import (
    empty_state,
    feature_link,
    href,
    html_block,
    link,
    notice,
    show_acting,
    table,
)
from frontend.html.format import counted, density, number, percent
from frontend.html.marks import named
from frontend.html.tokens import chips, example
from frontend.shell.downloads import download_menu
from frontend.shell.pager import list_top, no_such_page, pager
from frontend.shell.run_page import open_snapshot, snapshot_picker
from frontend.shell.url import (
    bound,
    bound_choice,
    bound_text,
    choice_param,
    float_param,
    param,
    say_unknown,
    set_param,
)
from sae_engine.schema.features import FeaturePage, FeatureRow, FeatureSort, SortOrder
from sae_engine.schema.runs import Run, Snapshot

PAGE_SIZE = 50
FILTERS = ("state", "mark", "min_density", "max_density", "q")
ANY_MARK = "Any mark"
CLARITY_TIP = "How well one word describes the feature, from 0 to 1"
_TITLES: dict[FeatureSort, str] = {
    "index": "Feature",
    "density": "Density",
    "max_activation": "Max",
    "label": "Label",
    "starred": "Star",
    "clarity": "Clarity",
}
_NUMBERS = ("density", "max_activation", "clarity")


def show() -> None:
    """The page."""
    run, snapshot = open_snapshot("features", search=True)
    say_unknown(sort=SORTS, order=ORDERS, state=STATES, mark=MARKS)
    listing = Listing.of_url()
    page = None if listing.problem else _page(run, snapshot, listing)
    _densities(run, snapshot, listing)
    _controls(run, snapshot, page)
    picked = picked_features()
    selection_bar(run, picked)
    if listing.problem:
        html_block(notice(listing.problem, level="warning"))
        _clear_button()
    elif page is None or (page.total and not page.items):
        no_such_page()
    elif not page.items:
        html_block(empty_state("No matching features", "Widen the filters above."))
        with st.container(horizontal_alignment="center"):
            _clear_button()
    else:
        list_top("features")
        table_html = _table(run, page, listing, picked)
        carry_out(run, show_acting(table_html, key="features-table"))
        pager(page.next_cursor, key=f"features:{run.id}", shown=len(page.items), total=page.total)


def _page(run: Run, snapshot: Snapshot, listing: Listing) -> FeaturePage | None:
    """The page that the URL names; None if the list has none with its cursor."""
    cursor = param("cursor")
    try:
        return listing.page(run.id, snapshot.step, limit=PAGE_SIZE, cursor=cursor)
    except ApiProblem as error:
        if error.problem.status != 422 or cursor is None:
            raise
        return None


def _clear_button() -> None:
    def clear() -> None:
        for name in (*FILTERS, "cursor"):
            set_param(name, None)

    st.button("Clear filters", icon=":material/filter_alt_off:", key="clear", on_click=clear)


def _densities(run: Run, snapshot: Snapshot, listing: Listing) -> None:
    """All features by density; a click on a bar or a selected range filters the list."""
    data = cached_densities(run.id, snapshot.step)
    if not any(data.counts):
        return
    query = {name: param(name) for name in ("snapshot", "sort", "order", "state", "mark", "q")}
    show_figure(
        density_figure(data, lowest=listing.min_density, highest=listing.max_density),
        key="densities",
        about="Number of features by density",
        range={
            "address": href("features", {"id": run.id, **query}),
            "low": "min_density",
            "high": "max_density",
        },
    )


def _density_boxes() -> None:
    """Two boxes that hold in percent what the URL holds as shares."""
    for name, title in (("min_density", "Min"), ("max_density", "Max")):
        key = f"percent:{name}"
        value = float_param(name)
        st.session_state[key] = None if value is None else value * 100

        def write(name: str = name, key: str = key) -> None:
            chosen: float | None = st.session_state[key]
            set_param(name, None if chosen is None else f"{chosen / 100:.6g}")
            set_param("cursor", None)

        st.number_input(
            f"{title} density in percent",
            value=None,
            format="%.6g",
            key=key,
            on_change=write,
            placeholder=f"{title} %",
            label_visibility="collapsed",
            width=90,
        )


def _controls(run: Run, snapshot: Snapshot, page: FeaturePage | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        snapshot_picker(run)
        state = choice_param("state", STATES) or "all"
        bound_choice("State", "state", ("all", *STATES), state, default="all", label=str.capitalize)
        _mark_filter()
        hint = "Label, token or #index"
        text = param("q") or ""
        bound_text("Filter", "q", text, placeholder=hint, max_chars=MOST_FILTER_CHARS, width=190)
        _density_boxes()
        if page is not None:
            html_block(f'<span class="wb-muted">{counted(page.total, "feature")}</span>')
        with st.container(horizontal=True, width="content", gap="small"):
            label_menu(run, snapshot.step)
            download_menu(run, param("snapshot"))


def _mark_filter() -> None:
    key, write = bound("mark", choice_param("mark", MARKS) or ANY_MARK, default=ANY_MARK)
    st.selectbox(
        "Labels and stars",
        [ANY_MARK, *MARKS],
        key=key,
        on_change=write,
        format_func=str.capitalize,
        label_visibility="collapsed",
        width=130,
    )


def _table(run: Run, page: FeaturePage, listing: Listing, picked: Sequence[int]) -> str:
    titles = {name: _heading(run, name, listing.sort, listing.order) for name in _TITLES}
    head = (
        f'<th class="wb-checkcell">{pick_all(page.items, picked)}</th>{titles["starred"]}'
        f"{titles['index']}{titles['density']}{titles['max_activation']}"
        f"{titles['clarity']}<th>State</th>"
        f'{titles["label"]}<th>Top tokens</th><th class="wide">Strongest example</th>'
    )
    labeled = [row.index for row in page.items if row.label]
    written = {w.feature: w for w in client().labels(run.id, labeled)} if labeled else {}
    state = listing.state_of_address
    rows = "".join(
        _row(run, row, score_note(written.get(row.index)), picked, state) for row in page.items
    )
    return table(head, rows, css="features")


def _heading(run: Run, name: FeatureSort, sort: FeatureSort, order: SortOrder) -> str:
    """A title that sorts by its column, or turns the order around if the list is sorted by it."""
    on = name == sort
    turned: SortOrder = "asc" if order == "desc" else "desc"
    arrow = (" ↓" if order == "desc" else " ↑") if on else ""
    query = {
        "id": run.id,
        "snapshot": param("snapshot"),
        "sort": name,
        "order": turned if on else first_order(name),
        **{each: param(each) for each in (*FILTERS, "pick")},
    }
    css = ' class="num"' if name in _NUMBERS else ""
    if name == "clarity":
        css += f' title="{CLARITY_TIP}"'
    if on:
        css += f' aria-sort="{"descending" if order == "desc" else "ascending"}"'
    return f"<th{css}>{link('features', _TITLES[name] + arrow, query)}</th>"


def _row(
    run: Run,
    row: FeatureRow,
    note: str,
    picked: Collection[int],
    state: Mapping[str, object | None],
) -> str:
    link_html = feature_link(run.id, row.index, snapshot=param("snapshot"), state=state)
    css = ' class="picked"' if row.index in picked else ""
    return (
        f'<tr{css}><td class="wb-checkcell">{pick_box(row.index, picked)}</td>'
        f"<td>{star_button(row)}</td>"
        f"<td>{link_html}</td>"
        f'<td class="num" title="{density(row.density)}">{percent(row.density.fraction)}</td>'
        f'<td class="num">{number(row.max_activation)}</td>'
        f'<td class="num">{number(row.clarity)}</td>'
        f'<td><span class="wb-state {row.state}">{row.state}</span></td>'
        f'<td class="label">{named(row)}{note}</td>'
        f'<td class="tops">{chips(row.top_tokens[:4])}</td>'
        f"<td>{example(row.example, reach=14)}</td></tr>"
    )


if __name__ == "__main__":
    show()
