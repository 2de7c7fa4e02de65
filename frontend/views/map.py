"""Map: a run's features on a plane, close where their decoder rows point in similar directions."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import client
from frontend.charts.feature_map import map_figure
from frontend.charts.plot import show_figure
from frontend.features.listing import MOST_FILTER_CHARS
from frontend.html.blocks import href, html_block, notice
from frontend.html.format import count, counted
from frontend.shell.limits import too_long
from frontend.shell.progress import computed
from frontend.shell.run_page import open_snapshot, snapshot_picker
from frontend.shell.url import bound_text, param
from sae_engine.schema.analysis import FeatureMap
from sae_engine.schema.runs import Run, Snapshot

MAX_FOUND = 500
"""Features that a search highlights."""


def show() -> None:
    """The page."""
    run, snapshot = open_snapshot("map", search=True)
    found = computed(
        lambda: client().feature_map(run.id, snapshot=snapshot.step),
        key=f"map:{run.id}:{snapshot.step}",
        doing="Building the map",
    )
    if found is not None:
        _map(run, snapshot, found)


def _map(run: Run, snapshot: Snapshot, data: FeatureMap) -> None:
    query = "" if too_long(param("q") or "", MOST_FILTER_CHARS) else param("q")
    chosen: set[int] = set()
    total = 0
    if query:
        page = client().features(run.id, snapshot=snapshot.step, q=query, limit=MAX_FOUND)
        chosen, total = {row.index for row in page.items}, page.total
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        snapshot_picker(run)
        hint = "Highlight a label, token or #index"
        bound_text(
            "Highlight",
            "q",
            param("q") or "",
            placeholder=hint,
            search=True,
            max_chars=MOST_FILTER_CHARS,
            width=280,
        )
        html_block(f'<span class="wb-muted">{_caption(data, query, len(chosen), total)}</span>')
    if not data.index:
        html_block(notice("No features fire in this snapshot."))
        return
    address = href("feature", {"id": run.id, "snapshot": param("snapshot")}) + "&index="
    show_figure(
        map_figure(data, chosen=chosen),
        key="map",
        library="gl2d",
        opens=address,
        about="Map of features",
    )


def _caption(data: FeatureMap, query: str | None, num_chosen: int, total: int) -> str:
    if query:
        rest = f", {count(num_chosen)} highlighted" if total > num_chosen else ""
        return f"{counted(total, 'feature')} found{rest}"
    dead = f" · {counted(data.num_dead, 'dead feature')} hidden" if data.num_dead else ""
    return f"{counted(len(data.index), 'feature')}{dead} · click one to open it, scroll to zoom"


if __name__ == "__main__":
    show()
