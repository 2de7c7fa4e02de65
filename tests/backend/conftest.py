"""A server on a temporary folder whose jobs run the fake engine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.processes import is_alive
from backend.settings import Settings
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.schema.runs import Run
from tests.backend.fake_engine import fake_job
from tests.backend.postgres import MISSING, Postgres, find_programs, running_server

DEADLINE_SECONDS = 60.0
URL = "http://127.0.0.1"


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds; fail at the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "deadline exceeded"
        time.sleep(0.02)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests marked `both_databases` on SQLite and on PostgreSQL."""
    marked = metafunc.definition.get_closest_marker("both_databases") is not None
    if marked and "database_url" in metafunc.fixturenames:
        kinds = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]
        metafunc.parametrize("database_url", kinds, indirect=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server; where its programs are missing, tests are skipped, or fail if `CI` is set."""
    programs = find_programs()
    if programs is None:
        assert not os.environ.get("CI"), MISSING
        pytest.skip(MISSING)
    with running_server(programs) as server:
        yield server


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """A PostgreSQL URL; None for an SQLite file in the data folder."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield None
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    with postgres.database() as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path, database_url: str | None) -> Settings:
    return Settings(data_dir=tmp_path / "data", database_url=database_url)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.resolved_database_url)
    database.prepare()
    yield database
    with database.reading() as session:
        rows = store.active_runs(session)
    kill_jobs(rows)
    database.close()


def kill_jobs(rows: Collection[RunRow]) -> None:
    """Kill jobs that a test left behind, also those that have not taken their runs yet."""
    jobs = {row.job for row in rows}
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if not jobs.isdisjoint(child.cmdline()):
                child.kill()
    for process in {row.process for row in rows if row.process is not None}:
        if process.pid != os.getpid() and is_alive(*process):
            psutil.Process(process.pid).kill()


@pytest.fixture
def client(settings: Settings, database: Database) -> Iterator[TestClient]:
    with TestClient(create_app(settings, command=fake_job), URL) as client:
        yield client


def create(client: TestClient, name: str = "wait", **more: object) -> Run:
    answer = client.post("/api/runs", json={"preset": "quick-test", "name": name, **more})
    assert answer.status_code == 201, answer.text
    return Run.model_validate_json(answer.content)


def read(client: TestClient, run_id: str) -> Run:
    answer = client.get(f"/api/runs/{run_id}")
    assert answer.status_code == 200, answer.text
    return Run.model_validate_json(answer.content)


def wait_for_status(client: TestClient, run_id: str, *statuses: str) -> Run:
    wait_for(lambda: read(client, run_id).status in statuses)
    return read(client, run_id)


def claim_next(session: Session, device: str = "cpu") -> Sequence[RunRow]:
    """Claim what a supervisor with one slot would start next."""
    queue = store.queued_runs(session)
    return store.claim(session, queue[0], queue, slot=device, device=device) if queue else []
