"""The menu of a run's downloads."""

from __future__ import annotations

import html
import os
from urllib.parse import quote, urlencode, urlsplit

import streamlit as st

from frontend.html.blocks import base_path, html_block
from sae_engine.schema.exports import EXPORT_FORMATS
from sae_engine.schema.runs import Run


def download_menu(run: Run, snapshot: str | None = None) -> None:
    """A button that opens the menu; features come from `snapshot`, by default the latest."""
    with st.popover("Download", key="downloads"):
        html_block(download_list(run, snapshot, links=pages_serve_the_api()))


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
        rows.append(f"<li>{title}<span>{info.summary}</span>{where}</li>")
    return f'<ul class="wb-downloads">{"".join(rows)}</ul>'


def pages_serve_the_api() -> bool:
    """Whether pages and API share a port, so that the browser reaches both."""
    port = urlsplit(os.environ.get("SAE_WORKBENCH_API_URL", "")).port
    return port is not None and port == st.get_option("server.port")
