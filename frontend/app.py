"""Entry point of the pages; `sae-workbench up` serves it beside the API."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from frontend.api.client import ApiProblem
from frontend.html.blocks import HOME
from frontend.shell.away import banner_while_away
from frontend.shell.help import show_help
from frontend.shell.navigation import PAGES, script_of
from frontend.shell.problems import show_problem, show_problem_of_attempt

HERE = Path(__file__).parent

st.set_page_config(page_title="SAE Workbench", page_icon=str(HERE / "mark.svg"), layout="wide")
st.html(HERE / "style.css")
st.logo(str(HERE / "mark.svg"), size="large")
page = st.navigation(
    [
        st.Page(
            script_of(page.name),
            title=page.title,
            default=page.name == HOME,
            visibility="visible" if page.offered == "menu" else "hidden",
        )
        for page in PAGES
    ],
    position="top",
)
show_help()
banner_while_away()
show_problem_of_attempt()
try:
    page.run()
except ApiProblem as error:
    show_problem(error)
