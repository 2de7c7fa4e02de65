"""Previous and next page of a list that is paged by cursors, and which of its items are shown."""

from __future__ import annotations

import streamlit as st

from frontend.html.blocks import component, html_block, notice, set_link, show_linked
from frontend.html.format import count
from frontend.shell.url import param

# After a move to another page, the list begins at the top of the window.
_TOP_JS = """
export default function ({ data, parentElement }) {
  const moved = parentElement.wbPage !== undefined && parentElement.wbPage !== data;
  parentElement.wbPage = data;
  parentElement.style.scrollMarginTop = "5rem";  // below the header, which stays
  if (moved) parentElement.scrollIntoView({ block: "start" });
}
"""


def list_top(key: str) -> None:
    """Mark the top of a list, to which the window scrolls when the URL's `cursor` changes."""
    with st.container(key=f"top-{key}"):
        component("wb_top", js=_TOP_JS)(key=f"top:{key}", data=param("cursor") or "", height=1)


def pager(next_cursor: str | None, *, key: str, shown: int = 0, total: int = 0) -> None:
    """Two buttons that move the URL's `cursor`, beside the places of the `shown` of `total` items.

    The session keeps for each cursor the one before it, and how many items come before its page.
    """
    kept: dict[str, tuple[str, int]] = st.session_state.setdefault(f"cursors:{key}", {})
    here = param("cursor") or ""
    if not here and next_cursor is None:
        return
    before, start = ("", 0) if not here else kept.get(here, ("", None))
    if next_cursor is not None and start is not None:
        kept[next_cursor] = here, start + shown
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        if st.button(
            "Previous", icon=":material/chevron_left:", disabled=not here, key="page-back"
        ):
            st.query_params["cursor"] = before
            st.rerun()
        if st.button(
            "Next", icon=":material/chevron_right:", disabled=next_cursor is None, key="page-on"
        ):
            st.query_params["cursor"] = next_cursor or ""
            st.rerun()
        if shown and total and start is not None:
            places = f"{count(start + 1)}–{count(start + shown)} of {count(total)}"
            html_block(f'<span class="wb-muted">{places}</span>')


def no_such_page() -> None:
    """Say that the URL's `cursor` is none of this list's, and lead to its first page."""
    html_block(notice("This page of the list does not exist.", level="warning"))
    first = set_link("Show the first page", {"cursor": None}, css="wb-more", tip="")
    show_linked(f"<p>{first}</p>", key="first-page")
