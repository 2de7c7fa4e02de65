"""Fixtures for tests of what the engine's records become."""

from __future__ import annotations

import pytest

from backend.settings import Settings
from backend.store.database import Database
from tests.backend.jobs.bench import Bench


@pytest.fixture
def bench(database: Database, settings: Settings) -> Bench:
    return Bench(database, settings)
