"""The client of the pages, and answers that are kept for seconds.

`st.cache_data` tells answers apart by the arguments. Fed by the client; read by `shell`, the noun
wings and `views`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime

import streamlit as st

from frontend.api.client import WorkbenchClient
from sae_engine.schema.analysis import DensityHistogram
from sae_engine.schema.features import FeatureRow, SortOrder
from sae_engine.schema.machine import Preset
from sae_engine.schema.runs import ENDED, MetricsSeries, Run, RunSort, RunStatus, Snapshot

RECENT_RUNS = 200
MOST_RUNS = 2000
_CURVE_POINTS = 200


@st.cache_resource(show_spinner=False)
def _client(base_url: str, token: str | None) -> WorkbenchClient:
    return WorkbenchClient(base_url, token)


def client() -> WorkbenchClient:
    """The client of the server that `SAE_WORKBENCH_API_URL` names."""
    base_url = os.environ.get("SAE_WORKBENCH_API_URL", "http://127.0.0.1:8501")
    return _client(base_url, os.environ.get("SAE_WORKBENCH_TOKEN", "").strip() or None)


def forget_cached() -> None:
    """Drop all cached answers, after something was changed."""
    st.cache_data.clear()


@st.cache_data(ttl=2, show_spinner=False)
def cached_run(run_id: str) -> Run:
    """A run, fresh enough for headings."""
    return client().run(run_id)


@st.cache_data(ttl=5, show_spinner=False)
def cached_runs() -> list[Run]:
    """The newest runs."""
    return client().runs(limit=RECENT_RUNS).items


@st.cache_data(ttl=10, show_spinner=False, max_entries=20)
def all_runs(
    status: RunStatus | None,
    q: str | None,
    tags: Sequence[str],
    archived: bool,
    sort: RunSort = "created",
    order: SortOrder | None = None,
    most: int = MOST_RUNS,
) -> list[Run]:
    """Every matching run, up to `most`."""
    found: list[Run] = []
    cursor = None
    while len(found) < most:
        page = client().runs(
            status=status,
            q=q,
            tags=tags,
            archived=archived,
            sort=sort,
            order=order,
            limit=min(500, most),
            cursor=cursor,
        )
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


@st.cache_data(ttl=10, show_spinner=False)
def known_tags() -> list[str]:
    """Every tag, most frequent first."""
    return [each.tag for each in client().tags()]


@st.cache_data(ttl=10, show_spinner=False)
def known_devices() -> list[str]:
    """The devices that this server trains on."""
    return list(dict.fromkeys(slot.device for slot in client().system().slots))


@st.cache_data(ttl=60, show_spinner=False)
def cached_presets() -> list[Preset]:
    """The presets."""
    return client().presets()


@st.cache_data(ttl=2, show_spinner=False)
def cached_snapshots(run_id: str) -> list[Snapshot]:
    """A run's snapshots."""
    return client().snapshots(run_id)


@st.cache_data(ttl=300, show_spinner=False)
def num_features(run_id: str, snapshot: int) -> int:
    """Number of features, dead ones included; a snapshot never changes."""
    return client().features(run_id, snapshot=snapshot, limit=1).total


@st.cache_data(ttl=10, show_spinner=False, max_entries=500)
def feature_row(run_id: str, snapshot: int, index: int) -> FeatureRow | None:
    """A feature as lists show it; None if there is no such feature."""
    found = client().features(run_id, snapshot=snapshot, q=f"#{index}", limit=1)
    return next(iter(found.items), None)


@st.cache_data(ttl=300, show_spinner=False)
def cached_densities(run_id: str, snapshot: int) -> DensityHistogram:
    """Densities of a snapshot's features; a snapshot never changes."""
    return client().densities(run_id, snapshot=snapshot)


def coarse_curves(run: Run, keys: Sequence[str]) -> MetricsSeries:
    """Some curves of a run with few points, to be drawn together with many others."""
    if run.status in ENDED:
        return _ended_curves(run.id, run.ended_at, keys)
    return client().metrics(run.id, keys=keys, max_points=_CURVE_POINTS)


@st.cache_data(ttl=600, show_spinner=False, max_entries=500)
def _ended_curves(run_id: str, ended_at: datetime | None, keys: Sequence[str]) -> MetricsSeries:
    return client().metrics(run_id, keys=keys, max_points=_CURVE_POINTS)
