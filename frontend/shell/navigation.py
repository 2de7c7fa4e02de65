"""From page to page by the browser's own doing: buttons that are links, and moves after an action.

`st.switch_page` would let the server move. Until its answer arrives, the timers of the page that is
left go on in the browser, and what they ask for is drawn into the next page (decision 0021).
"""

from __future__ import annotations

from typing import Literal

import streamlit as st

from frontend.html.blocks import component, href

_PAGES = {
    "": "views/runs.py",
    "launch": "views/launch.py",
    "run": "views/run.py",
    "features": "views/features.py",
    "compare": "views/compare.py",
}
"""Where buttons lead."""

# Drawn again, it finds the browser where it was to go.
_MOVE_JS = """
export default function ({ data }) {
  const target = new URL(data, window.location.href).href;
  if (target === window.location.href) return;
  history.pushState({}, "", target);
  window.dispatchEvent(new PopStateEvent("popstate"));
}
"""


def page_button(
    label: str,
    page: str,
    *,
    key: str,
    icon: str | None = None,
    tip: str | None = None,
    primary: bool = False,
    enabled: bool = True,
    width: Literal["content", "stretch"] = "content",
    **query: object,
) -> None:
    """A link that looks like a button; None is left out of its address."""
    kind = "primary" if primary else "plain"
    with st.container(key=f"go-{kind}-{key}", width=width):
        st.page_link(
            _PAGES[page],
            label=label,
            icon=icon,
            help=tip,
            disabled=not enabled,
            width=width,
            query_params={n: str(value) for n, value in query.items() if value not in (None, "")},
        )


def open_page(page: str, **query: object) -> None:
    """Leave for another page once this one is drawn; None is left out of its address."""
    component("wb_move", js=_MOVE_JS)(key="move", data=href(page or "./", query), height=0)


def runs_button(key: str = "all-runs") -> None:
    """What a page offers that has nothing to show."""
    page_button("Show all runs", "", key=key, primary=True)
