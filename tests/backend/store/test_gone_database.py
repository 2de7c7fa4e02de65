"""A database file that goes away under a running server is reported; nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from backend import store
from backend.jobs.retry import DatabaseRefusedError, when_available
from backend.settings import DATABASE, Settings
from backend.store.database import Database, DatabaseGoneError
from tests.backend.conftest import create


def delete(folder: Path) -> Callable[[], None]:
    (folder / DATABASE).rename(folder / "away")
    return lambda: (folder / "away").rename(folder / DATABASE) and None


def move_folder(folder: Path) -> Callable[[], None]:
    away = folder.with_name("away")
    folder.rename(away)
    return lambda: away.rename(folder) and None


def replace(folder: Path) -> Callable[[], None]:
    back = delete(folder)
    shutil.copy(folder / "away", folder / DATABASE)
    return back


@pytest.mark.parametrize("take_away", [delete, move_folder, replace])
def test_requests_say_that_the_database_is_gone_until_it_is_back(
    client: TestClient, settings: Settings, take_away: Callable[[Path], Callable[[], None]]
) -> None:
    before = create(client, "wait")
    client.post(f"/api/runs/{before.id}/stop?force=true")
    put_back = take_away(settings.data_dir)
    body = {"preset": "quick-test"}
    for answer in (
        client.post("/api/runs", json=body),
        client.get("/api/runs"),
        client.get("/api/system"),
        client.patch(f"/api/runs/{before.id}", json={"notes": "x"}),
    ):
        assert answer.status_code == 503
        assert "was moved, replaced or deleted while it was in use" in answer.json()["detail"]
    assert client.get("/api/health").status_code == 200
    put_back()
    assert [run["id"] for run in client.get("/api/runs").json()["items"]] == [before.id]
    assert client.patch(f"/api/runs/{before.id}", json={"notes": "x"}).status_code == 200


def test_a_job_waits_for_a_database_that_is_gone_but_not_forever(
    settings: Settings, database: Database
) -> None:
    with database.reading() as session:
        assert store.count_by_status(session) == {}
    put_back = delete(settings.data_dir)

    def transaction() -> str:
        with database.writing():
            return "done"

    assert when_available(transaction, sleep=lambda _: put_back()) == "done"
    put_back = delete(settings.data_dir)
    with pytest.raises(DatabaseRefusedError, match="moved, replaced or deleted"):
        when_available(transaction, refused_seconds=0)
    put_back()


def test_no_process_creates_an_empty_database_by_looking_for_one(settings: Settings) -> None:
    settings.data_dir.mkdir()
    database = Database(settings.resolved_database_url)
    with closing(database), pytest.raises(DatabaseGoneError), database.reading():
        pass
    assert list(settings.data_dir.iterdir()) == []
