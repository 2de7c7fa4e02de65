"""Pieces of pages: HTML whose links stay in the session, headings, badges, empty states."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import streamlit as st
from streamlit.components import v2

from frontend.html.tokens import escaped
from sae_engine.schema.runs import Run, RunStatus

# Links are real ones (middle click, copy address). A plain click moves within the session, as the
# browser's Back does, instead of loading everything anew. Those with data-set change values of the
# address at hand; they get their own when they are pointed at, as a long one many times over would
# be too much. Those with data-toggle look at the address only then, so that quick clicks add up.
# Buttons with data-act tell the program what they say.
_LINKS_JS = """
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".wb-block");
  if (root.wbHtml !== data) { root.innerHTML = data; root.wbHtml = data; }
  const toggled = (link) => {
    const url = new URL(window.location.href), name = link.dataset.toggle;
    const held = (url.searchParams.get(name) ?? "").split(",").filter((value) => value);
    const left = held.filter((value) => value !== link.dataset.value);
    const now = left.length < held.length ? left : [...held, link.dataset.value];
    if (now.length) url.searchParams.set(name, now.join(","));
    else url.searchParams.delete(name);
    link.href = url.href;
    return link;
  };
  const resolve = (event) => {
    const link = event.target.closest("a[href]");
    if (link?.dataset.toggle !== undefined) return toggled(link);
    if (!link || link.dataset.set === undefined) return link;
    const url = new URL(window.location.href);
    for (const [name, value] of new URLSearchParams(link.dataset.set)) {
      if (value) url.searchParams.set(name, value);
      else url.searchParams.delete(name);
    }
    link.href = url.href;
    return link;
  };
  root.onmouseover = root.onfocusin = resolve;
  root.onclick = (event) => {
    const button = event.target.closest("button[data-act]");
    if (button) { setTriggerValue("act", button.dataset.act); return; }
    const link = resolve(event);
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    history.pushState({}, "", link.href);
    window.dispatchEvent(new PopStateEvent("popstate"));
  };
}
"""

_SLASH_JS = """
export default function () {
  const listen = (event) => {
    const typing = event.target.closest("input, textarea, [contenteditable]");
    const box = document.querySelector(".st-key-search input");
    if (event.key !== "/" || typing || !box) return;
    event.preventDefault();
    box.focus();
  };
  document.addEventListener("keydown", listen);
  return () => document.removeEventListener("keydown", listen);
}
"""

_FACES = (
    ("run", "Training"),
    ("features", "Features"),
    ("map", "Map"),
    ("lookup", "Look up"),
    ("playground", "Playground"),
)
"""Pages of a run, as its header offers them."""

STATUS_HELP: dict[RunStatus, str] = {
    "queued": "Waits for its turn.",
    "running": "Trains now.",
    "stopping": "Was asked to stop; builds its features first.",
    "finished": "Reached its last step.",
    "stopped": "Was stopped; what it had learned is kept.",
    "failed": "Ended with an error.",
    "interrupted": "Its process vanished or was killed.",
}


def href(page: str, query: Mapping[str, object | None]) -> str:
    """Address of a page with its state, such as `feature?id=…&index=3`; None is left out."""
    given = {name: str(value) for name, value in query.items() if value not in (None, "")}
    return f"{page}?{urlencode(given)}" if given else page


def link(page: str, label_html: str, query: Mapping[str, object | None], *, css: str = "") -> str:
    """An anchor to a page; `label_html` is HTML already."""
    kind = f' class="{css}"' if css else ""
    return f'<a{kind} href="{html.escape(href(page, query), quote=True)}">{label_html}</a>'


def set_link(label_html: str, change: Mapping[str, object | None], *, css: str, note: str) -> str:
    """An anchor to this page with some values of its address changed; None takes one out."""
    query = urlencode({name: "" if value is None else value for name, value in change.items()})
    return (
        f'<a class="{css}" href="?{html.escape(query, quote=True)}" '
        f'data-set="{html.escape(query, quote=True)}" title="{escaped(note)}">{label_html}</a>'
    )


def toggle_link(label_html: str, name: str, value: str, *, css: str, note: str) -> str:
    """An anchor that puts a value into a list of this page's address, or takes it out of there."""
    return (
        f'<a class="{css}" href="?" data-toggle="{escaped(name)}" data-value="{escaped(value)}" '
        f'title="{escaped(note)}">{label_html}</a>'
    )


def show_linked(body: str, *, key: str) -> None:
    """Show HTML (escaped already) whose links open pages of this session."""
    _links()(key=key, data=body)


def show_acting(body: str, *, key: str) -> tuple[str, str] | None:
    """The same with `act_button`s; what the one that was clicked does, and to which run."""
    done = _links()(key=key, data=body, on_act_change=_nothing)
    verb, _, subject = str(done.act or "").partition(" ")
    return (verb, subject) if verb else None


def _nothing() -> None:
    """Asks Streamlit to draw anew after a click, which is all."""


def act_button(verb: str, subject: str, sign: str, tip: str, *, enabled: bool = True) -> str:
    """A small button within HTML."""
    act, says, off = escaped(f"{verb} {subject}"), escaped(tip), "" if enabled else " disabled"
    return (
        f'<button class="wb-do" data-act="{act}" title="{says}" aria-label="{says}"{off}>'
        f"{sign}</button>"
    )


def slash_focuses_search() -> None:
    """Let the key `/` jump into the page's search box."""
    _slash()(key="slash", height=0)


def html_block(body: str) -> None:
    """Show HTML (escaped already) without links."""
    st.html(body)


def badge(status: RunStatus) -> str:
    """A run's status as a colored pill."""
    note = html.escape(STATUS_HELP[status], quote=True)
    return f'<span class="wb-badge {status}" title="{note}">{status}</span>'


def progress_bar(fraction: float | None, *, css: str = "") -> str:
    """A thin bar; an unknown fraction moves."""
    if fraction is None:
        return f'<span class="wb-progress unknown {css}"><i></i></span>'
    share = min(max(fraction, 0.0), 1.0)
    return f'<span class="wb-progress {css}"><i style="width:{share:.1%}"></i></span>'


def run_header(run: Run, current: str, snapshot: str | None = None) -> str:
    """Breadcrumb, name, status and the run's faces, of which one is `current`. The first of them
    shows the status by itself.
    """
    tabs = "".join(
        link(
            page,
            title,
            {"id": run.id, "snapshot": snapshot if page != "run" else None},
            css="on" if page == current else "",
        )
        for page, title in _FACES
    )
    crumb = link("./", "Runs", {})
    state = "" if current == "run" else badge(run.status)  # stands beside the progress there
    return (
        f'<div class="wb-head"><div class="wb-crumb">{crumb}</div>'
        f"<h1>{escaped(run.name)}</h1>{state}"
        f'<span class="wb-muted wb-what">{escaped(run.config.model.name)} · '
        f"{escaped(run.config.hook_name)}{sweep_link(run)}</span>"
        f'<nav class="wb-tabs">{tabs}</nav></div>'
    )


def sweep_link(run: Run) -> str:
    """Leads from a run to the others of its sweep; nothing for a run of its own."""
    if run.group_id is None:
        return ""
    return " · " + link("sweep", "sweep", {"id": run.group_id}, css="wb-sweep")


def tag_chips(run: Run) -> str:
    """A run's tags, each leading to the runs that have it."""
    return "".join(link("./", escaped(tag), {"tag": tag}, css="wb-tag") for tag in run.tags)


def notice(body: str, *, level: str = "info", title: str = "") -> str:
    """A framed message; both texts are plain and get escaped."""
    head = f"<strong>{html.escape(title)}</strong>" if title else ""
    return f'<div class="wb-notice {level}">{head}<span>{escaped_lines(body)}</span></div>'


def empty_state(title: str, body: str) -> str:
    """What an empty place says: what is missing and what to do next."""
    return f'<div class="wb-empty"><h2>{html.escape(title)}</h2><p>{escaped(body)}</p></div>'


def escaped_lines(text: str) -> str:
    """Plain text of several lines as HTML."""
    return "<br>".join(escaped(line) for line in text.splitlines())


def _links() -> Any:
    return component("wb_links", js=_LINKS_JS, html='<div class="wb-block"></div>')


def _slash() -> Any:
    return component("wb_slash", js=_SLASH_JS)


@st.cache_resource(show_spinner=False)
def component(name: str, *, js: str, html: str | None = None) -> Any:
    """What draws a piece of a page with a script of its own."""
    return v2.component(name, html=html, js=js, isolate_styles=False)
