"""The table of pages, and moves between them that the browser makes: links and buttons.

`st.switch_page` would let the server move. Until its answer arrives, the timers of the old page
keep running in the browser, and their results are drawn into the new page (decision 0021).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import streamlit as st

from frontend.html.blocks import HOME, component, href


class Page(NamedTuple):
    """One page of the app."""

    name: str
    """Its script is `views/<name>.py`; except for `HOME`, also its path in the URL."""
    title: str
    offered: Literal["menu", "run", "links"] = "links"
    """Where it is offered: in the menu, as a tab of a run, or only by links."""


PAGES = (
    Page(HOME, "Runs", "menu"),
    Page("launch", "New run", "menu"),
    Page("import_sae", "Import an SAE", "menu"),
    Page("system", "System", "menu"),
    Page("run", "Training", "run"),
    Page("settings", "Settings", "run"),
    Page("features", "Features", "run"),
    Page("map", "Map", "run"),
    Page("lookup", "Look up", "run"),
    Page("playground", "Playground", "run"),
    Page("feature", "Feature"),
    Page("compare", "Compare"),
    Page("sweep", "Sweep"),
    Page("glossary", "Glossary"),
)

# When drawn again, the browser is already at its target.
_MOVE_JS = """
export default function ({ data }) {
  const target = new URL(data, window.location.href).href;
  if (target === window.location.href) return;
  history.pushState({}, "", target);
  window.dispatchEvent(new PopStateEvent("popstate"));
}
"""


def script_of(page: str) -> str:
    """A page's script, relative to `app.py`."""
    return f"views/{page}.py"


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
            script_of(page),
            label=label,
            icon=icon,
            help=tip,
            disabled=not enabled,
            width=width,
            query_params={n: str(value) for n, value in query.items() if value not in (None, "")},
        )


def open_page(page: str, **query: object) -> None:
    """Move to another page once this one is drawn; None is left out of its address."""
    component("wb_move", js=_MOVE_JS)(key="move", data=href(page, query), height=0)


def runs_button(key: str = "all-runs") -> None:
    """The way out of a page that has nothing to show."""
    page_button("Show all runs", HOME, key=key, primary=True)


def name_tab(*parts: str) -> None:
    """Name the browser's tab after the page's content."""
    st.set_page_config(page_title=" · ".join([*parts, "SAE Workbench"]))
