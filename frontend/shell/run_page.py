"""How a run's pages begin: the run that the URL names, their heading, the snapshot they show.

A snapshot is pinned by the URL, or it is the latest, which is followed while the run trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import streamlit as st

from frontend.api.cache import cached_run, cached_snapshots, client, forget_cached
from frontend.html.blocks import (
    badge,
    empty_state,
    heading,
    html_block,
    link,
    notice,
    set_link,
    show_linked,
    sweep_link,
    tab_link,
)
from frontend.html.format import count, short_count
from frontend.html.tokens import escaped
from frontend.shell.navigation import PAGES, name_tab, open_page, page_button, runs_button
from frontend.shell.problems import live
from frontend.shell.url import bound, int_param, param
from sae_engine.schema.runs import ENDED, Run, Snapshot

LATEST = "latest"
SHOWN_CHARS = 40
"""Of a wrong value of an address."""
MOST_LINKED = 20


class RunPage(NamedTuple):
    """What a page about a run's features shows."""

    run: Run
    snapshot: Snapshot


def open_run(tab: str | None = None, *, search: bool = False) -> Run:
    """The run that the URL names, under the heading of its pages with `tab` as the current one.

    Without a `tab` the page draws its own heading. If the URL names no run, the page ends here.
    """
    run_id = param("id")
    if run_id is None:
        html_block(empty_state("Choose a run", "This address names none."))
        with st.container(horizontal_alignment="center"):
            runs_button()
        st.stop()
    run = cached_run(run_id)
    if tab is None:
        return run
    title = next(page.title for page in PAGES if page.name == tab)
    name_tab(*([] if tab == "run" else [title]), run.name)
    head = box = st.container()
    if search:
        head, box = st.columns([3.2, 1.2], vertical_alignment="bottom")
    with head:
        show_linked(run_heading(run, tab), key="head")
    if search:
        with box:
            search_box(run)
    return run


def open_snapshot(tab: str | None = None, *, search: bool = False) -> RunPage:
    """The same, with the snapshot that the page shows; before the first one the page ends here."""
    run = open_run(tab, search=search)
    snapshots = cached_snapshots(run.id)
    pinned = param("snapshot")
    shown = _snapshot_of_url(snapshots)
    if snapshots and shown is None:
        _no_such_snapshot(run, snapshots, has_heading=tab is not None)
        st.stop()
    if run.status not in ENDED and pinned is None:
        live(lambda: _redraw_if_newer(run, shown), active=True)
    if shown is None:
        html_block(empty_state("No features yet", features_ahead(run)))
        page_button("Watch training", "run", key="watch", primary=True, id=run.id)
        st.stop()
    return RunPage(run, shown)


def _snapshot_of_url(snapshots: Sequence[Snapshot]) -> Snapshot | None:
    """The one that the URL names, by default the latest; None if there is none."""
    if param("snapshot") is None:
        return snapshots[-1] if snapshots else None
    return next((s for s in snapshots if s.step == int_param("snapshot")), None)


def _no_such_snapshot(run: Run, snapshots: Sequence[Snapshot], *, has_heading: bool) -> None:
    if not has_heading:
        crumbs = [link("run", escaped(run.name), {"id": run.id})]
        show_linked(heading("No such snapshot", crumbs=crumbs), key="head")
    given = (param("snapshot") or "")[:SHOWN_CHARS]
    html_block(notice(f"This run has no snapshot at step {given}.", title="No such snapshot"))
    links = [set_link("Latest", {"snapshot": None}, css="wb-more", tip="")]
    links += [
        set_link(f"step {count(s.step)}", {"snapshot": s.step}, css="wb-more", tip="")
        for s in reversed(snapshots[-MOST_LINKED:])
    ]
    show_linked(f'<p class="wb-muted">Show instead:{" ".join(links)}</p>', key="snapshots")


def _redraw_if_newer(run: Run, shown: Snapshot | None) -> None:
    snapshots = client().snapshots(run.id)
    if snapshots and (shown is None or snapshots[-1].step > shown.step):
        forget_cached()
        st.rerun()


def features_ahead(run: Run) -> str:
    """When a run without a snapshot will have features."""
    if run.status in ENDED:
        return "This run has no feature index."
    first, last = run.config.train.snapshot_every, run.progress.total_steps
    if first is None or run.config.sae.pretrained or (last is not None and first >= last):
        return "Features appear here at the end of the run."
    return f"Features appear here after step {count(first)}."


def run_heading(run: Run, tab: str) -> str:
    """Name, status and tabs of a run; the first tab shows the status itself."""
    snapshot = param("snapshot")
    tabs = "".join(
        tab_link(
            page.name,
            page.title,
            {"id": run.id, "snapshot": None if page.name == "run" else snapshot},
            on=page.name == tab,
        )
        for page in PAGES
        if page.offered == "run"
    )
    state = "" if tab == "run" else badge(run.status)
    about = f"{escaped(run.config.model.name)} · {escaped(run.config.hook_name)}{sweep_link(run)}"
    return heading(
        run.name,
        after=f'{state}<span class="wb-muted">{about}</span><nav class="wb-tabs">{tabs}</nav>',
    )


def snapshot_picker(run: Run, *, wide: bool = False) -> None:
    """Choose a snapshot; the latest is followed unless one is chosen. A `wide` one fills its
    column and has a title.
    """
    snapshots = {str(s.step): s for s in reversed(cached_snapshots(run.id))}
    pinned = str(int_param("snapshot"))
    key, write = bound("snapshot", pinned if pinned in snapshots else LATEST, default=LATEST)

    is_imported = run.config.sae.pretrained is not None

    def title(option: str) -> str:
        if is_imported and snapshots:  # only one
            return "Latest (final)" if option == LATEST else "Final"
        if option == LATEST:
            newest = next(iter(snapshots), None)
            return f"Latest (step {int(newest):,})" if newest else "Latest"
        kind = "Final" if snapshots[option].final else f"Step {option}"
        return f"{kind} · {short_count(snapshots[option].tokens)} tokens"

    st.selectbox(
        "Snapshot",
        [LATEST, *snapshots],
        key=key,
        on_change=write,
        format_func=title,
        label_visibility="visible" if wide else "collapsed",
        width="stretch" if wide else 190,
    )


def search_box(run: Run) -> None:
    """The box that leads from any page of a run to the lookup of a token."""

    def go() -> None:
        st.session_state["lookup-text"] = st.session_state["search"]
        st.session_state["search"] = ""

    st.text_input(
        "Look up a token",
        key="search",
        placeholder="Look up a token, such as import   ( / )",
        icon=":material/search:",
        label_visibility="collapsed",
        on_change=go,
    )
    text = st.session_state.pop("lookup-text", "")
    if text:
        open_page("lookup", id=run.id, q=text, snapshot=param("snapshot"))
