"""Previous and next page of a list that is paged by cursors."""

from __future__ import annotations

import streamlit as st

from frontend.shell.url import param


def pager(next_cursor: str | None, *, key: str) -> None:
    """Two buttons that move the URL's `cursor`; the session keeps the cursors of earlier pages."""
    trail: list[str] = st.session_state.setdefault(f"cursors:{key}", [])
    here = param("cursor") or ""
    if not here:
        trail.clear()
        if next_cursor is None:
            return
    with st.container(horizontal=True, gap="small"):
        if st.button(
            "Previous", icon=":material/chevron_left:", disabled=not here, key="page-back"
        ):
            st.query_params["cursor"] = trail.pop() if trail else ""
            st.rerun()
        if st.button(
            "Next", icon=":material/chevron_right:", disabled=next_cursor is None, key="page-on"
        ):
            trail.append(here)
            st.query_params["cursor"] = next_cursor or ""
            st.rerun()
