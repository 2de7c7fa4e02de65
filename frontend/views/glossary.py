"""Glossary: `docs/glossary.md`, which a link in `frontend` leads to, as a page."""

from __future__ import annotations

import re
from pathlib import Path

import streamlit as st

from frontend.shell.navigation import name_tab

FILE = Path(__file__).parents[1] / "glossary.md"


def show() -> None:
    """The page."""
    name_tab("Glossary")
    with st.container(key="glossary"):
        st.markdown(without_links(FILE.read_text("utf-8")))


def without_links(markdown: str) -> str:
    """Text in which links to other files, which no page shows, are plain words."""
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", markdown)


if __name__ == "__main__":
    show()
