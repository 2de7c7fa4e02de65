"""A database that is locked for long: readers and health go on, writers get a 503."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager

import httpx
import pytest

from backend.app import create_app
from backend.http.limits import MAX_CHANGES
from backend.settings import Settings
from backend.store.database import BUSY_TIMEOUT_SECONDS, Database
from tests.backend.conftest import URL
from tests.backend.fake_engine import fake_job

NUM_WRITERS = 45
BUSY_SECONDS = 4.0


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    path = settings.data_dir / "workbench.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        yield
        lock.execute("ROLLBACK")


@asynccontextmanager
async def served(
    settings: Settings, busy_seconds: float = BUSY_SECONDS
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, command=fake_job, busy_seconds=busy_seconds)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=URL) as http,
    ):
        yield http


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_waiting_writers_delay_neither_health_nor_readers_and_get_a_503(
    settings: Settings, database: Database, method: str
) -> None:
    async def check() -> None:
        async with served(settings) as http:
            body = {"preset": "quick-test"}
            created = await http.post("/api/runs", json=body)
            path = "/api/runs" if method == "POST" else created.headers["location"]
            body = {"notes": "x"} if method == "PATCH" else body
            with locked(settings):
                writers = [
                    asyncio.create_task(http.request(method, path, json=body))
                    for _ in range(NUM_WRITERS)
                ]
                await asyncio.sleep(0.3)  # until they wait
                for path in ("/api/health", "/api/runs", "/api/system"):
                    assert (await http.get(path)).status_code == 200
                    assert not any(writer.done() for writer in writers), path
                answers = await asyncio.gather(*writers)
            assert {answer.status_code for answer in answers} == {503}
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)

    asyncio.run(check())


def test_many_writers_at_once_all_succeed(settings: Settings, database: Database) -> None:
    async def check() -> None:
        async with served(settings, BUSY_TIMEOUT_SECONDS) as http:
            created = await http.post("/api/runs", json={"preset": "quick-test"})
            path = created.headers["location"]
            answers = await asyncio.gather(
                *(http.patch(path, json={"notes": str(n)}) for n in range(3 * MAX_CHANGES))
            )
            assert {answer.status_code for answer in answers} == {200}

    asyncio.run(check())
