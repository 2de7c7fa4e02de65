"""The form that pushes a run's SAE to the Hugging Face hub."""

from __future__ import annotations

import streamlit as st

from frontend.api.cache import client
from frontend.api.client import ApiProblem
from frontend.html.format import counted
from sae_engine.schema.runs import ENDED, Run
from sae_engine.schema.saes import PushCreate

HELP = (
    "Uses the server's HF_TOKEN, for the owners and repositories in its SAE_WORKBENCH_PUSH_TO. "
    "Uploads everything in one commit, with a model card."
)


def push_form(run: Run) -> None:
    """A button that opens the form; none while the run is active."""
    if run.status not in ENDED:
        return
    popover = st.popover("Push to the hub", key="push", width="stretch")
    with popover, st.form(f"push:{run.id}", border=False):
        name = st.text_input("Repository", placeholder="owner/name", key="push-to", max_chars=490)
        tip = "Anyone can see a new repository. One that exists stays as it is."
        public = st.checkbox("Public", key="push-public", help=tip)
        st.caption(HELP)
        if st.form_submit_button("Push", key="push-now", type="primary"):
            _push(run, name.strip().removeprefix("hub:"), public=public)


def _push(run: Run, name: str, *, public: bool) -> None:
    if not name:
        st.error("Name a repository, such as owner/name.")
        return
    try:
        with st.spinner("Pushing…"):
            body = PushCreate(target=f"hub:{name}", private=not public)
            pushed = client().push_run(run.id, body)
    except ApiProblem as error:
        st.error(str(error))
        return
    st.success(f"Pushed {counted(len(pushed.files), 'file')}: [{pushed.target}]({pushed.url})")
