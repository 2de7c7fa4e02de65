"""Pieces of pages: links that stay in the session, headings, tables, badges, empty states.

Fed by the vocabulary; read by every wing that draws.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st
from streamlit.components import v2

from frontend.html.tokens import escaped
from sae_engine.schema.runs import Run, RunStatus

# Links have real addresses (middle click, copy). A plain click moves within the session, like the
# browser's Back, instead of reloading everything. Links with data-set change values of the current
# address; their own address is filled in when they are hovered, because repeating a long one in
# every link would be too much. Links with data-toggle read the address only then, so that quick
# clicks add up. Buttons with data-act send their text to the program.
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
  root.onkeydown = (event) => {  // a box obeys the space bar, as boxes do
    const box = event.target.closest('[role="checkbox"]');
    if (!box || event.key !== " ") return;
    event.preventDefault();
    box.click();
  };
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

HOME = "runs"
"""The page at the root of the address."""

STATUS_HELP: dict[RunStatus, str] = {
    "queued": "Waiting to start.",
    "running": "In progress.",
    "stopping": "Stopping; its features are built first.",
    "finished": "Reached its last step.",
    "stopped": "Stopped early; the SAE trained so far is kept.",
    "failed": "Ended with an error.",
    "interrupted": "Its process was killed or disappeared.",
}


def base_path() -> str:
    """The path below which a proxy serves pages and API, such as `/sae`; empty without one."""
    given = os.environ.get("SAE_WORKBENCH_BASE_PATH") or st.get_option("server.baseUrlPath")
    path = str(given or "").strip().strip("/")
    return f"/{path}" if path else ""


def href(page: str, query: Mapping[str, object | None]) -> str:
    """Address of a page with its state, such as `feature?id=…&index=3`; None is left out."""
    path = "./" if page == HOME else page
    given = {name: str(value) for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def link(page: str, label_html: str, query: Mapping[str, object | None], *, css: str = "") -> str:
    """An anchor to a page; `label_html` is HTML already."""
    return _anchor(page, label_html, query, f' class="{css}"' if css else "")


def tab_link(page: str, title: str, query: Mapping[str, object | None], *, on: bool) -> str:
    """The anchor of a tab, of which one is the current one."""
    return _anchor(page, escaped(title), query, ' class="on" aria-current="page"' if on else "")


def _anchor(page: str, label_html: str, query: Mapping[str, object | None], attributes: str) -> str:
    return f'<a{attributes} href="{html.escape(href(page, query), quote=True)}">{label_html}</a>'


def feature_link(
    run_id: str,
    index: int,
    *,
    snapshot: str | None = None,
    label_html: str = "",
    css: str = "wb-name",
    state: Mapping[str, object | None] | None = None,
) -> str:
    """An anchor to a feature's page, which shows the feature's index unless labeled otherwise.

    `state` is what else its address holds.
    """
    query = {"id": run_id, "index": index, "snapshot": snapshot, **(state or {})}
    return link("feature", label_html or str(index), query, css=css)


def set_link(
    label_html: str,
    change: Mapping[str, object | None],
    *,
    css: str,
    tip: str,
    checked: bool | None = None,
) -> str:
    """An anchor to this page with some values of its address changed; None removes one.

    With `checked` it is a box in that state, named by its `tip`; with the
    class `on` it is the current one of several.
    """
    query = urlencode({name: "" if value is None else value for name, value in change.items()})
    role = ' aria-current="true"' if "on" in css.split() else ""
    role = role if checked is None else _box(checked, tip)
    return (
        f'<a class="{css}" href="?{html.escape(query, quote=True)}" '
        f'data-set="{html.escape(query, quote=True)}" title="{escaped(tip)}"{role}>{label_html}</a>'
    )


def toggle_link(name: str, value: str, *, on: bool, tip: str) -> str:
    """A box that adds a value to a list in this page's address, or removes it."""
    css, sign = ("wb-check on", "✓") if on else ("wb-check", "")
    return (
        f'<a class="{css}" href="?" data-toggle="{escaped(name)}" data-value="{escaped(value)}" '
        f'title="{escaped(tip)}"{_box(on, tip)}>{sign}</a>'
    )


def _box(checked: bool, name: str) -> str:
    return f' role="checkbox" aria-checked="{str(checked).lower()}" aria-label="{escaped(name)}"'


def show_linked(body: str, *, key: str) -> None:
    """Show HTML (escaped already) whose links open pages of this session."""
    _links()(key=key, data=body)


def show_acting(body: str, *, key: str) -> tuple[str, str] | None:
    """The same with `act_button`s; returns the verb and the subject of the clicked one."""
    done = _links()(key=key, data=body, on_act_change=lambda: None)
    verb, _, subject = str(done.act or "").partition(" ")
    return (verb, subject) if verb else None


def act_button(
    verb: str,
    subject: str,
    sign: str,
    tip: str,
    *,
    enabled: bool = True,
    css: str = "",
    pressed: bool | None = None,
) -> str:
    """A small button within HTML; with `pressed` one that stays down."""
    act, text, off = escaped(f"{verb} {subject}"), escaped(tip), "" if enabled else " disabled"
    state = "" if pressed is None else f' aria-pressed="{str(pressed).lower()}"'
    return (
        f'<button class="{f"wb-do {css}".strip()}" data-act="{act}" title="{text}" '
        f'aria-label="{text}"{state}{off}>{sign}</button>'
    )


def html_block(body: str) -> None:
    """Show HTML (escaped already) without links; nothing if it is empty."""
    if body:
        st.html(body)


def section_title(text: str, *, note: str = "") -> None:
    """Show the title of a part of a page, with a small note after it."""
    html_block(f'<h3 class="wb-section">{text}{f" <small>{note}</small>" if note else ""}</h3>')


def panel_title(title_html: str, *, css: str = "", tip: str = "") -> str:
    """The title of a panel, smaller than a section's."""
    hint = f' title="{escaped(tip)}"' if tip else ""
    return f'<h3 class="wb-panel{f" {css}" if css else ""}"{hint}>{title_html}</h3>'


def heading(title: str, *, crumbs: Sequence[str] = (), after: str = "") -> str:
    """A page's heading: links to the pages above it, its title (plain text), and more HTML."""
    path = "<span>/</span>".join([link(HOME, "Runs", {}), *crumbs])
    return (
        f'<div class="wb-head"><div class="wb-crumb">{path}</div>'
        f"<h1>{escaped(title)}</h1>{after}</div>"
    )


def table(head: str, rows: str, *, css: str) -> str:
    """A table from the cells of its head and from its rows; narrow windows scroll it sideways."""
    return (
        f'<div class="wb-wide"><table class="wb-table {css}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def numeric_cells(values: Iterable[str]) -> str:
    """Cells of a row, aligned to the right."""
    return "".join(f'<td class="num">{value}</td>' for value in values)


def badge(status: RunStatus) -> str:
    """A run's status as a colored pill."""
    tip = html.escape(STATUS_HELP[status], quote=True)
    return f'<span class="wb-badge {status}" title="{tip}">{status}</span>'


def progress_bar(fraction: float | None, *, css: str = "") -> str:
    """A thin bar; it slides while the fraction is unknown."""
    if fraction is None:
        return f'<span class="wb-progress unknown {css}" aria-hidden="true"><i></i></span>'
    width = f"width:{min(max(fraction, 0.0), 1.0):.1%}"
    return f'<span class="wb-progress {css}" aria-hidden="true"><i style="{width}"></i></span>'


def sweep_link(run: Run) -> str:
    """Leads from a run to the other runs of its sweep; empty for a single run."""
    if run.group_id is None:
        return ""
    return " · " + link("sweep", "sweep", {"id": run.group_id}, css="wb-sweep")


def tag_chips(run: Run) -> str:
    """A run's tags, each leading to the runs that have it."""
    return "".join(link(HOME, escaped(tag), {"tag": tag}, css="wb-tag") for tag in run.tags)


def notice(body: str, *, level: str = "info", title: str = "") -> str:
    """A framed message; both texts are plain and get escaped."""
    head = f"<strong>{html.escape(title)}</strong>" if title else ""
    return f'<div class="wb-notice {level}">{head}<span>{escaped_lines(body)}</span></div>'


def explanation(question: str, answer: str) -> str:
    """A line that unfolds into an explanation; both texts are plain."""
    body = escaped_lines(answer)
    return f'<details class="wb-why"><summary>{escaped(question)}</summary><p>{body}</p></details>'


def empty_state(title: str, body_html: str, *, css: str = "") -> str:
    """What an empty place shows: what is missing and what to do next."""
    kind = f"wb-empty {css}".strip()
    return f'<div class="{kind}"><h2>{html.escape(title)}</h2><p>{body_html}</p></div>'


def escaped_lines(text: str) -> str:
    """Plain text of several lines as HTML."""
    return "<br>".join(escaped(line) for line in text.splitlines())


def _links() -> Any:
    return component("wb_links", js=_LINKS_JS, html='<div class="wb-block"></div>')


@st.cache_resource(show_spinner=False)
def component(name: str, *, js: str, html: str | None = None) -> Any:
    """A piece of a page that runs a script, registered once."""
    return v2.component(name, html=html, js=js, isolate_styles=False)
