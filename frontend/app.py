"""Entry point of the pages; `sae-workbench up` serves it beside the API."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from frontend.api.client import ApiProblem
from frontend.html.blocks import slash_focuses_search
from frontend.shell.url import show_problem, show_problem_of_attempt

HERE = Path(__file__).parent

st.set_page_config(page_title="SAE Workbench", page_icon=str(HERE / "mark.svg"), layout="wide")
st.html(HERE / "style.css")
st.logo(str(HERE / "mark.svg"), size="large")
page = st.navigation(
    [
        st.Page("views/runs.py", title="Runs", default=True),
        st.Page("views/launch.py", title="New run", url_path="launch"),
        st.Page("views/system.py", title="System", url_path="system"),
        st.Page("views/run.py", title="Run", url_path="run", visibility="hidden"),
        st.Page("views/features.py", title="Features", url_path="features", visibility="hidden"),
        st.Page("views/feature.py", title="Feature", url_path="feature", visibility="hidden"),
        st.Page("views/map.py", title="Map", url_path="map", visibility="hidden"),
        st.Page("views/compare.py", title="Compare", url_path="compare", visibility="hidden"),
        st.Page("views/sweep.py", title="Sweep", url_path="sweep", visibility="hidden"),
        st.Page("views/lookup.py", title="Look up", url_path="lookup", visibility="hidden"),
        st.Page(
            "views/playground.py", title="Playground", url_path="playground", visibility="hidden"
        ),
    ],
    position="top",
)
slash_focuses_search()
show_problem_of_attempt()
try:
    page.run()
except ApiProblem as error:
    show_problem(error)
