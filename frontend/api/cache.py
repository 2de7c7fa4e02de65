"""The server as pages ask it: one client, and answers kept for seconds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime

import streamlit as st

from frontend.api.client import WorkbenchClient
from sae_engine.schema.analysis import DensityHistogram
from sae_engine.schema.features import FeatureRow
from sae_engine.schema.machine import Preset
from sae_engine.schema.runs import ENDED, MetricsSeries, Run, RunStatus, Snapshot

RECENT_RUNS = 200
MOST_RUNS = 2000


@st.cache_resource(show_spinner=False)
def _client(base_url: str, token: str | None) -> WorkbenchClient:
    return WorkbenchClient(base_url, token)


def client() -> WorkbenchClient:
    """The client of the server that `SAE_WORKBENCH_API_URL` names."""
    base_url = os.environ.get("SAE_WORKBENCH_API_URL", "http://127.0.0.1:8501")
    return _client(base_url, os.environ.get("SAE_WORKBENCH_TOKEN") or None)


@st.cache_data(ttl=2, show_spinner=False)
def _run(base: str, run_id: str) -> Run:
    return client().run(run_id)


@st.cache_data(ttl=5, show_spinner=False)
def _runs(base: str) -> list[Run]:
    return client().runs(limit=RECENT_RUNS).items


@st.cache_data(ttl=10, show_spinner=False, max_entries=20)
def _all_runs(
    base: str, status: RunStatus | None, q: str | None, tags: tuple[str, ...], archived: bool
) -> list[Run]:
    found: list[Run] = []
    cursor = None
    while len(found) < MOST_RUNS:
        page = client().runs(
            status=status, q=q, tags=tags, archived=archived, limit=500, cursor=cursor
        )
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


@st.cache_data(ttl=10, show_spinner=False)
def _tags(base: str) -> list[str]:
    return [each.tag for each in client().tags()]


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


@st.cache_data(ttl=10, show_spinner=False)
def _devices(base: str) -> list[str]:
    return list(dict.fromkeys(slot.device for slot in client().system().slots))


def known_devices() -> list[str]:
    """The devices that runs are trained on here."""
    return _devices(_base())


_OVERLAID = ("fvu", "eval_fvu", "l0", "frac_dead", "ce_delta")
_OVERLAID_POINTS = 200


@st.cache_data(ttl=600, show_spinner=False, max_entries=500)
def _ended_curves(base: str, run_id: str, ended_at: datetime | None) -> MetricsSeries:
    return client().metrics(run_id, keys=_OVERLAID, max_points=_OVERLAID_POINTS)


def curves_of(run: Run) -> MetricsSeries:
    """A run's most important curves with few points, to be drawn with many others."""
    if run.status in ENDED:
        return _ended_curves(_base(), run.id, run.ended_at)
    return client().metrics(run.id, keys=_OVERLAID, max_points=_OVERLAID_POINTS)


def forget_cached() -> None:
    """Make the next look at runs and snapshots a fresh one."""
    _run.clear()
    _runs.clear()
    _all_runs.clear()
    _tags.clear()
    _snapshots.clear()


def cached_run(run_id: str) -> Run:
    """A run, at most two seconds old: enough for headings."""
    return _run(_base(), run_id)


def cached_runs() -> list[Run]:
    """The newest runs, at most five seconds old: enough to choose from."""
    return _runs(_base())


def all_runs(
    status: RunStatus | None, q: str | None, tags: Sequence[str], archived: bool
) -> list[Run]:
    """Every run that matches, up to `MOST_RUNS`, at most ten seconds old."""
    return _all_runs(_base(), status, q, tuple(tags), archived)


def known_tags() -> list[str]:
    """Every tag there is, the commonest first."""
    return _tags(_base())


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
