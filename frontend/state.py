"""What pages share: the client, the state in the URL, short-lived caches, problems in words."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import streamlit as st

from frontend.blocks import empty_state, html_block, notice
from frontend.client import ApiProblem, WorkbenchClient
from sae_engine.schema.analysis import DensityHistogram
from sae_engine.schema.api import FeatureRow
from sae_engine.schema.machine import Preset
from sae_engine.schema.runs import ENDED, Run, Snapshot

_Choice = TypeVar("_Choice")

RETRY_SECONDS = 2
POLL_SECONDS = 2

_PROBLEM = "problem"

_PAGES = {
    "": "views/runs.py",
    "launch": "views/launch.py",
    "run": "views/run.py",
    "features": "views/features.py",
    "feature": "views/feature.py",
    "map": "views/map.py",
    "lookup": "views/lookup.py",
    "playground": "views/playground.py",
    "compare": "views/compare.py",
}


@st.cache_resource(show_spinner=False)
def _client(base_url: str, token: str | None) -> WorkbenchClient:
    return WorkbenchClient(base_url, token)


def client() -> WorkbenchClient:
    """The client of the server that `SAE_WORKBENCH_API_URL` names."""
    base_url = os.environ.get("SAE_WORKBENCH_API_URL", "http://127.0.0.1:8501")
    return _client(base_url, os.environ.get("SAE_WORKBENCH_TOKEN") or None)


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


def open_page(page: str, **query: object) -> NoReturn:
    """Leave for another page of this session; None is left out of its URL."""
    given = {name: str(value) for name, value in query.items() if value not in (None, "")}
    st.switch_page(_PAGES[page], query_params=given)


@st.cache_data(ttl=2, show_spinner=False)
def _run(base: str, run_id: str) -> Run:
    return client().run(run_id)


@st.cache_data(ttl=2, show_spinner=False)
def _snapshots(base: str, run_id: str) -> list[Snapshot]:
    return client().snapshots(run_id)


@st.cache_data(ttl=60, show_spinner=False)
def _presets(base: str) -> list[Preset]:
    return client().presets()


@st.cache_data(ttl=10, show_spinner=False, max_entries=500)
def _feature_row(base: str, run_id: str, snapshot: int, index: int) -> FeatureRow | None:
    found = client().features(run_id, snapshot=snapshot, q=f"#{index}", limit=1)
    return next(iter(found.items), None)


@st.cache_data(ttl=300, show_spinner=False)
def _num_features(base: str, run_id: str, snapshot: int) -> int:
    return client().features(run_id, snapshot=snapshot, limit=1).total


@st.cache_data(ttl=300, show_spinner=False)
def _densities(base: str, run_id: str, snapshot: int) -> DensityHistogram:
    return client().densities(run_id, snapshot=snapshot)


def _base() -> str:
    return os.environ.get("SAE_WORKBENCH_API_URL", "")


def forget_cached() -> None:
    """Make the next look at runs and snapshots a fresh one."""
    _run.clear()
    _snapshots.clear()


def cached_run(run_id: str) -> Run:
    """A run, at most two seconds old: enough for headings."""
    return _run(_base(), run_id)


def cached_snapshots(run_id: str) -> list[Snapshot]:
    """A run's snapshots, at most two seconds old."""
    return _snapshots(_base(), run_id)


def cached_presets() -> list[Preset]:
    """The presets, at most a minute old."""
    return _presets(_base())


def num_features(run_id: str, snapshot: int) -> int:
    """Number of features, dead ones included; a snapshot never changes."""
    return _num_features(_base(), run_id, snapshot)


def feature_row(run_id: str, snapshot: int, index: int) -> FeatureRow | None:
    """A feature as lists show it, its label at most ten seconds old; None if there is none."""
    return _feature_row(_base(), run_id, snapshot, index)


def cached_densities(run_id: str, snapshot: int) -> DensityHistogram:
    """Densities of a snapshot's features; a snapshot never changes."""
    return _densities(_base(), run_id, snapshot)


def required_run() -> Run:
    """The run that the URL's `id` names; without one the page says so and ends."""
    run_id = param("id")
    if run_id is None:
        html_block(empty_state("No run chosen", "The address of this page lacks ?id=…"))
        if st.button("Show all runs", type="primary"):
            open_page("")
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
    if error.problem.status == 404 and st.button("Show all runs", key="problem-home"):
        open_page("")


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
