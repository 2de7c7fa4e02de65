"""What pages share: the state in the URL, parts that stay live, problems in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import streamlit as st

from frontend.api.cache import cached_run, cached_snapshots, client
from frontend.api.client import ApiProblem
from frontend.html.blocks import empty_state, html_block, notice
from frontend.shell.navigation import open_page, runs_button
from sae_engine.schema.runs import ENDED, Run, Snapshot

_Choice = TypeVar("_Choice")

RETRY_SECONDS = 2
POLL_SECONDS = 2

_PROBLEM = "problem"


def param(name: str) -> str | None:
    """A value of the URL's query; an empty one is None."""
    return st.query_params.get(name) or None


def int_param(name: str) -> int | None:
    """A whole number of the URL's query; anything else is None."""
    text = param(name) or ""
    return int(text) if text.isdecimal() else None


def float_param(name: str) -> float | None:
    """A finite number of the URL's query; anything else is None."""
    try:
        value = float(param(name) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def choice_param(name: str, choices: Sequence[_Choice]) -> _Choice | None:
    """One of `choices` from the URL's query; anything else is None."""
    given = param(name)
    return next((choice for choice in choices if choice == given), None)


def list_param(name: str) -> list[str]:
    """The parts of a value of the URL's query that commas separate, each once."""
    parts = (part.strip() for part in (param(name) or "").split(","))
    return list(dict.fromkeys(part for part in parts if part))


def set_param(name: str, value: object | None) -> None:
    """Change one value of the URL's query; None takes it out."""
    if value in (None, ""):
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = str(value)


def bound(name: str, value: object, *, default: object = None) -> tuple[str, Callable[[], None]]:
    """Key and callback that tie a widget to the URL: the URL leads, the widget writes it."""
    key = f"url:{name}"
    st.session_state[key] = value

    def write() -> None:
        chosen = st.session_state[key]
        set_param(name, None if chosen == default else chosen)
        set_param("cursor", None)

    return key, write


def required_run() -> Run:
    """The run that the URL's `id` names; without one the page says so and ends."""
    run_id = param("id")
    if run_id is None:
        html_block(empty_state("No run chosen", "The address of this page lacks ?id=…"))
        runs_button()
        st.stop()
    return cached_run(run_id)


def show_problem(error: ApiProblem) -> None:
    """Say in words what went wrong; an unreachable server is tried again until it answers."""
    if error.unreachable:
        _retry()
        return
    details = [f"{p.field}: {p.message}" for p in error.problem.errors]
    text = "\n".join([error.problem.detail or error.problem.title, *details])
    html_block(notice(text, level="warning", title=error.problem.title))
    if error.problem.status == 404:
        runs_button("problem-home")


@st.fragment(run_every=RETRY_SECONDS)
def _retry() -> None:
    try:
        client().health()
    except ApiProblem as error:
        _say_unreachable(error, RETRY_SECONDS)
    else:
        st.rerun()


def live(body: Callable[[], None], *, active: bool) -> None:
    """Run a part of a page, again and again while `active`, with problems in words."""

    @st.fragment(run_every=POLL_SECONDS if active else None)
    def part() -> None:
        try:
            body()
        except ApiProblem as error:
            if active and error.unreachable:
                _say_unreachable(error, POLL_SECONDS)
            else:
                show_problem(error)

    part()


def _say_unreachable(error: ApiProblem, seconds: int) -> None:
    text = f"{error.problem.detail} Trying again every {seconds} seconds; runs go on."
    html_block(notice(text, level="warning", title="No connection"))


def attempt(action: Callable[[], object]) -> None:
    """Do something in a widget's callback; a problem is shown on the page drawn next."""
    try:
        action()
    except ApiProblem as error:
        st.session_state[_PROBLEM] = error


def show_problem_of_attempt() -> None:
    """Say what went wrong in the callback that led to this drawing, if anything did."""
    error: ApiProblem | None = st.session_state.pop(_PROBLEM, None)
    if error is not None:
        show_problem(error)


def name_tab(*parts: str) -> None:
    """Name the browser's tab after what the page shows."""
    st.set_page_config(page_title=" · ".join([*parts, "SAE Workbench"]))


def has_ended(run: Run) -> bool:
    """Whether nothing about the run changes any more by itself."""
    return run.status in ENDED


def chosen_snapshot(run: Run) -> Snapshot | None:
    """The snapshot that the URL pins, else the latest; None before the first."""
    snapshots = cached_snapshots(run.id)
    pinned = int_param("snapshot")
    latest = snapshots[-1] if snapshots else None
    return next((s for s in snapshots if s.step == pinned), latest)


def search_box(run: Run) -> None:
    """The box that leads from any page of a run to what fires on a token."""

    def go() -> None:
        st.session_state["lookup-text"] = st.session_state["search"]
        st.session_state["search"] = ""

    st.text_input(
        "Look up a token",
        key="search",
        placeholder="Look up a token, such as import   ( / )",
        icon=":material/search:",
        label_visibility="collapsed",
        on_change=go,
    )
    text = st.session_state.pop("lookup-text", "")
    if text:
        open_page("lookup", id=run.id, q=text, snapshot=param("snapshot"))
