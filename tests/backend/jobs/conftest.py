"""Fixtures for tests of what the engine's records become."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.settings import Settings
from backend.store.database import Database
from tests.backend.fake_cluster import FakeCluster, running_cluster
from tests.backend.jobs.bench import Bench


@pytest.fixture
def bench(database: Database, settings: Settings) -> Bench:
    return Bench(database, settings)


@pytest.fixture
def cluster(tmp_path: Path, settings: Settings) -> Iterator[FakeCluster]:
    with running_cluster(tmp_path) as cluster:
        for node in ("a", "b"):
            cluster.environments[node] = {
                "SAE_WORKBENCH_DATA_DIR": str(settings.data_dir),
                "SAE_WORKBENCH_DATABASE_URL": settings.resolved_database_url,
                "NODE": node,
            }
        yield cluster
