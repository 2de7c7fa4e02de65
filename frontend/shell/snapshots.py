"""Which snapshot a page shows: pinned in the URL, or the latest, followed while the run trains."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import cached_snapshots, client, forget_cached
from frontend.html.format import short_count
from frontend.shell.url import bound, has_ended, int_param, live
from sae_engine.schema.runs import Run, Snapshot

LATEST = "latest"


def snapshot_picker(run: Run) -> None:
    """Choose a snapshot; the latest is followed unless one is chosen."""
    snapshots = {str(s.step): s for s in reversed(cached_snapshots(run.id))}
    pinned = str(int_param("snapshot"))
    key, write = bound("snapshot", pinned if pinned in snapshots else LATEST, default=LATEST)

    def title(option: str) -> str:
        if option == LATEST:
            newest = next(iter(snapshots), None)
            return f"Latest (step {newest})" if newest else "Latest"
        kind = "Final" if snapshots[option].final else f"Step {option}"
        return f"{kind} · {short_count(snapshots[option].tokens)} tokens"

    st.selectbox(
        "Snapshot",
        [LATEST, *snapshots],
        key=key,
        on_change=write,
        format_func=title,
        label_visibility="collapsed",
        width=190,
    )


def follow_latest(run: Run, shown: Snapshot | None) -> None:
    """Redraw the page when a newer snapshot is published, unless the URL pins one."""
    if has_ended(run) or int_param("snapshot") is not None:
        return

    def look() -> None:
        snapshots = client().snapshots(run.id)
        if snapshots and (shown is None or snapshots[-1].step > shown.step):
            forget_cached()
            st.rerun()

    live(look, active=True)
