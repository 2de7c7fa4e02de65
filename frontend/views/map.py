"""A run's features on a plane: near each other where their decoder rows point the same way."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import client
from frontend.charts.overview import map_figure
from frontend.charts.plot import show_figure
from frontend.html.blocks import empty_state, href, html_block, notice, run_header, show_linked
from frontend.html.format import count
from frontend.shell.progress import awaited
from frontend.shell.snapshots import follow_latest, snapshot_picker
from frontend.shell.url import bound, chosen_snapshot, name_tab, param, required_run, search_box
from sae_engine.schema.analysis import FeatureMap
from sae_engine.schema.runs import Run, Snapshot

MAX_FOUND = 500  # features that a search marks


def show() -> None:
    """The page."""
    run = required_run()
    name_tab("Map", run.name)
    header, search = st.columns([3.2, 1.2], vertical_alignment="bottom")
    with header:
        show_linked(run_header(run, "map", param("snapshot")), key="head")
    with search:
        search_box(run)
    snapshot = chosen_snapshot(run)
    follow_latest(run, snapshot)
    if snapshot is None:
        text = "The first snapshot appears here by itself while the run trains."
        html_block(empty_state("No features yet", text))
        return
    step = snapshot.step
    found = awaited(
        lambda: client().feature_map(run.id, snapshot=step), key=f"map:{run.id}:{step}", what="map"
    )
    if found is None:
        return
    _controls(run, snapshot, found)


def _controls(run: Run, snapshot: Snapshot, data: FeatureMap) -> None:
    query = param("q")
    chosen: set[int] = set()
    total = 0
    if query:
        page = client().features(run.id, snapshot=snapshot.step, q=query, limit=MAX_FOUND)
        chosen, total = {row.index for row in page.items}, page.total
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        snapshot_picker(run)
        key, write = bound("q", query or "")
        st.text_input(
            "Mark",
            key=key,
            on_change=write,
            placeholder="Mark a label, token or #index",
            icon=":material/search:",
            label_visibility="collapsed",
            width=280,
        )
        html_block(f'<span class="wb-muted">{_caption(data, query, len(chosen), total)}</span>')
    if not data.index:
        html_block(notice("No feature fires in this snapshot, so there is nothing to show."))
        return
    address = href("feature", {"id": run.id, "snapshot": param("snapshot")}) + "&index="
    show_figure(map_figure(data, chosen=chosen), key="map", library="gl2d", opens=address)


def _caption(data: FeatureMap, query: str | None, num_marked: int, total: int) -> str:
    if query:
        rest = f", {count(num_marked)} of them marked" if total > num_marked else ""
        return f"{count(total)} {'feature' if total == 1 else 'features'} found{rest}"
    dead = f" · {count(data.num_dead)} dead ones left out" if data.num_dead else ""
    return f"{count(len(data.index))} features{dead} · click one to open it, scroll to zoom"


if __name__ == "__main__":
    show()
