"""The menu of a run's downloads."""

from __future__ import annotations

import html
import os
from urllib.parse import quote, urlencode, urlsplit

import streamlit as st

from frontend.html.blocks import html_block
from sae_engine.schema.features import ExportFormat
from sae_engine.schema.runs import Run

FORMATS: dict[ExportFormat, tuple[str, str]] = {
    "html": ("Static pages", "A folder with features and token lookup; needs no server"),
    "parquet": ("Parquet", "Tables of features, contexts and token statistics"),
    "jsonl": ("JSON Lines", "One feature per line, with Neuronpedia's field names"),
    "neuronpedia": ("Neuronpedia", "A folder to import into Neuronpedia"),
    "saelens": ("SAE", "The weights, for SAELens"),
}


def download_menu(run: Run, snapshot: str | None = None) -> None:
    """A button that opens the menu; features come from `snapshot`, by default the latest."""
    with st.popover("Download", key="downloads"):
        html_block(download_list(run, snapshot, links=pages_serve_the_api()))


def download_list(run: Run, snapshot: str | None, *, links: bool) -> str:
    """Every format with a description and a link, or without `links` its address in the API."""
    rows: list[str] = []
    for format_, (name, description) in FORMATS.items():
        chosen = snapshot if format_ != "saelens" else None
        query = {"format": format_} | ({"snapshot": chosen} if chosen else {})
        address = html.escape(f"/api/runs/{quote(run.id, safe='')}/export?{urlencode(query)}")
        title = f'<a href="{address}" download>{name}</a>' if links else f"<strong>{name}</strong>"
        where = "" if links else f"<code>GET {address}</code>"
        rows.append(f"<li>{title}<span>{description}</span>{where}</li>")
    return f'<ul class="wb-downloads">{"".join(rows)}</ul>'


def pages_serve_the_api() -> bool:
    """Whether pages and API share a port, so that the browser reaches both."""
    port = urlsplit(os.environ.get("SAE_WORKBENCH_API_URL", "")).port
    return port is not None and port == st.get_option("server.port")
