"""The buttons of a run's page, by the run's state."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from frontend.api.cache import client, forget_cached, known_tags
from frontend.api.client import ApiProblem
from frontend.html.blocks import HOME, html_block, notice
from frontend.html.format import counted
from frontend.shell.navigation import open_page, page_button
from sae_engine.schema.runs import ENDED, Run, RunPatch

_DELETING = "deleting"


def show_actions(run: Run) -> None:
    """Buttons side by side."""
    with st.container(horizontal=True, horizontal_alignment="right", gap="small"):
        _lifecycle(run)
        icon, tip = ":material/content_copy:", "New run with these settings"
        page_button("Clone", "launch", key="clone", icon=icon, tip=tip, clone=run.id)
        icon, tip = ":material/compare:", "Compare with other runs"
        page_button("Compare", "compare", key="compare", icon=icon, tip=tip, runs=run.id)
        with st.popover(
            "", icon=":material/more_horiz:", key="more", help="Edit, archive or delete"
        ):
            _edit(run)
            archive_button([run.id], archived=run.archived, key="archive")
            _delete(run)


def _lifecycle(run: Run) -> None:
    if run.status in ("queued", "running"):
        tip = "Stops within seconds, keeps the SAE and builds its features."
        if st.button("Stop", icon=":material/stop:", key="stop", help=tip):
            _do(lambda: client().stop_run(run.id))
    if run.status == "stopping":
        tip = "Stops at once, without building features."
        if st.button("Stop now", icon=":material/stop:", key="force", help=tip):
            _do(lambda: client().stop_run(run.id, force=True))
        # Where Stop was, so that a second click on it does nothing.
        st.button("Stop", icon=":material/stop:", key="stopping", disabled=True)
    if run.resumable:
        tip = "Continues from the last checkpoint."
        if st.button("Resume", icon=":material/play_arrow:", key="resume", help=tip):
            _do(lambda: client().resume_run(run.id))
    elif run.status in ("failed", "interrupted", "stopped"):
        tip = "Starts over, because there is no checkpoint."
        if st.button("Retry", icon=":material/replay:", key="retry", help=tip):
            _do(lambda: client().retry_run(run.id))


def _do(action: Callable[[], object]) -> None:
    """Act, and redraw the whole page."""
    action()
    forget_cached()
    st.rerun()


def _edit(run: Run) -> None:
    with st.form(f"edit:{run.id}", border=False):  # also submits text that was not yet entered
        name = st.text_input("Name", run.name, max_chars=200, key=f"name:{run.id}").strip()
        tags = st.multiselect(
            "Tags",
            list(dict.fromkeys([*run.tags, *known_tags()])),
            default=run.tags,
            key=f"tags:{run.id}",
            accept_new_options=True,
            placeholder="Type a tag and press Enter",
        )
        notes = st.text_area("Notes", run.notes, max_chars=20_000, key=f"notes:{run.id}")
        saved = st.form_submit_button("Save", key="save", type="primary")
    if saved and not name:
        html_block(notice("A run needs a name.", level="warning"))
    elif saved:
        new = {"name": name, "tags": tags, "notes": notes}
        _do(lambda: client().update_run(run.id, RunPatch.model_validate(new)))


def archive_button(
    run_ids: Sequence[str],
    *,
    archived: bool,
    key: str,
    all_runs: bool = False,
    after: Callable[[], None] = lambda: None,
) -> None:
    """A button that archives runs, or unarchives those that are `archived`."""
    text = f"{'Unarchive' if archived else 'Archive'}{' all' if all_runs else ''}"
    tip = None if archived else "Hides it from the list; nothing is deleted."
    if not st.button(text, icon=":material/archive:", key=key, help=tip):
        return
    for run_id in run_ids:
        client().update_run(run_id, RunPatch.model_validate({"archived": not archived}))
    forget_cached()
    after()
    st.rerun()


def stop_button(run_ids: Sequence[str], *, key: str) -> None:
    """A button that stops those of the runs that have not ended; they keep their features."""
    tip = "Stops those that have not ended; SAEs are kept and features built."
    if st.button("Stop", icon=":material/stop:", key=key, help=tip):
        _each(run_ids, lambda run_id: client().stop_run(run_id))
        forget_cached()
        st.rerun()


def delete_button(run_ids: Sequence[str], *, key: str, after: Callable[[], None]) -> None:
    """A button that deletes those of the runs that have ended, once it is confirmed."""
    with st.popover("Delete", icon=":material/delete:", key=key):
        st.caption("Curves, features, labels and weights will be lost. Active runs are kept.")
        what = counted(len(run_ids), "run")
        if st.button(f"Delete {what} permanently", key=f"{key}-sure", type="primary"):
            _each(run_ids, client().delete_run)
            forget_cached()
            after()
            st.rerun()


def _each(run_ids: Sequence[str], action: Callable[[str], object]) -> None:
    """Act on every run; those whose state does not allow it, or that are gone, stay as they are."""
    for run_id in run_ids:
        try:
            action(run_id)
        except ApiProblem as error:
            if error.problem.status not in (404, 409):
                raise


def _delete(run: Run) -> None:
    text, ended = "Delete run and files", run.status in ENDED
    tip = None if ended else "Only runs that have ended can be deleted."
    if st.button(text, icon=":material/delete:", key="delete", disabled=not ended, help=tip):
        st.session_state[_DELETING] = run.id
    if st.session_state.get(_DELETING) != run.id:
        return
    st.caption("Curves, features, labels and weights will be lost.")
    with st.container(horizontal=True, gap="small"):
        if st.button("Delete permanently", key="delete-sure", type="primary"):
            del st.session_state[_DELETING]
            client().delete_run(run.id)
            forget_cached()
            open_page(HOME)
            st.stop()
        if st.button("Cancel", key="delete-not"):
            del st.session_state[_DELETING]
            st.rerun()
