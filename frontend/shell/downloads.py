"""The menu of a run's downloads."""

from __future__ import annotations

import html
import os
from typing import Literal
from urllib.parse import quote, urlencode, urlsplit

import streamlit as st

from frontend.html.blocks import base_path, component, html_block
from sae_engine.schema.exports import EXPORT_FORMATS
from sae_engine.schema.runs import Run

# The browser shows nothing of a download before its first byte, so the menu does. The name that a
# click gives its export only has to differ from those of other clicks.
_JS = """
export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".wb-block");
  if (root.wbHtml === data.html) return;
  root.innerHTML = root.wbHtml = data.html;
  const words = ({ state, phase, fraction, file, detail }) =>
    state === "failed" ? detail
    : state === "done" ? `Downloading ${file}`
    : `${phase[0].toUpperCase()}${phase.slice(1)}…` +
      (fraction === null ? "" : ` ${Math.floor(100 * fraction)}%`);
  const follow = async (request, note) => {
    const began = Date.now();
    while (note.isConnected && note.dataset.request === request) {
      await new Promise((resolve) => setTimeout(resolve, 400));
      let answer;
      try { answer = await fetch(data.exports + request); } catch { continue; }
      if (answer.status === 404 && Date.now() - began < 60000) continue;
      const progress = await answer.json();
      if (!answer.ok) { note.textContent = progress.detail; return; }
      note.textContent = words(progress);
      note.classList.toggle("bad", progress.state === "failed");
      if (progress.state !== "running") return;
    }
  };
  root.onclick = (event) => {
    const link = event.target.closest("a[download]");
    if (!link) return;
    const request = Math.random().toString(36).slice(2), note = link.parentElement.lastChild;
    const address = new URL(link.href);
    address.searchParams.set("request", request);
    link.href = address.href;
    note.textContent = "Starting…";
    note.classList.remove("bad");
    note.dataset.request = request;
    follow(request, note);
  };
}
"""


def download_menu(
    run: Run,
    snapshot: str | None = None,
    *,
    width: Literal["content", "stretch"] = "content",
) -> None:
    """A button that opens the menu; features come from `snapshot`, by default the latest."""
    with st.popover("Download", key="downloads", width=width):
        links = pages_serve_the_api()
        rows = download_list(run, snapshot, links=links)
        if not links:
            html_block(rows)
            return
        box = component("wb_downloads", js=_JS, html='<div class="wb-block"></div>')
        box(key="download-list", data={"html": rows, "exports": f"{base_path()}/api/exports/"})


def download_list(run: Run, snapshot: str | None, *, links: bool) -> str:
    """Every format and its summary; without `links`, with the API call that downloads it."""
    rows: list[str] = []
    for format_, info in EXPORT_FORMATS.items():
        chosen = snapshot if info.writer is not None else None
        query = {"format": format_} | ({"snapshot": chosen} if chosen else {})
        address = html.escape(
            f"{base_path()}/api/runs/{quote(run.id, safe='')}/export?{urlencode(query)}"
        )
        title = (
            f'<a href="{address}" download>{info.title}</a>'
            if links
            else f"<strong>{info.title}</strong>"
        )
        where = "" if links else f"<code>GET {address}</code>"
        rows.append(f"<li>{title}<span>{info.summary}</span>{where}<em></em></li>")
    return f'<ul class="wb-downloads">{"".join(rows)}</ul>'


def pages_serve_the_api() -> bool:
    """Whether pages and API share a port, so that the browser reaches both."""
    port = urlsplit(os.environ.get("SAE_WORKBENCH_API_URL", "")).port
    return port is not None and port == st.get_option("server.port")
