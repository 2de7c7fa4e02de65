"""What happens to runs, streamed: in order, complete, and again from any point of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, NamedTuple

import pytest
from starlette.testclient import TestClient

from backend import store
from backend.http.events import EventFeed
from backend.store.database import Database
from sae_engine.presets import resolve_config
from sae_engine.schema.records import MetricsRecord, SnapshotRecord
from tests.backend.conftest import create, wait_for_status

pytestmark = pytest.mark.both_databases

STEPS = 30


class Received(NamedTuple):
    id: int | None
    name: str
    data: Any


def parsed(text: str) -> Iterator[Received]:
    """An event stream as a browser's EventSource reads it; events without data are not told."""
    last_id = None
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        last_id = int(fields["id"]) if "id" in fields else last_id
        if "data" in fields:
            number = int(fields["id"]) if "id" in fields else None
            yield Received(number, fields["event"], json.loads(fields["data"]))


def numbers_told(text: str) -> list[int]:
    return [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]


@pytest.fixture
def told(database: Database) -> str:
    """A run that told much and ended; every transaction tells one or two things."""
    with database.writing() as session:
        run_id = store.add_run(session, config=resolve_config("tiny", {}), status="running").id
    for step in range(1, STEPS + 1):
        record = MetricsRecord(step=step, tokens=step, time=step / 2, values={"fvu": 1 / step})
        with database.writing() as session:
            store.add_metrics(session, run_id, [record])
        if step % 10 == 0:
            late = MetricsRecord(step=step, tokens=step, time=step / 2, values={"eval_fvu": 0.5})
            snapshot = SnapshotRecord(
                step=step, tokens=step, index_tokens=9, seconds=1, final=step == STEPS
            )
            with database.writing() as session:
                store.add_metrics(session, run_id, [late])
                store.add_snapshot(session, run_id, snapshot)
        if step == 20:
            with database.writing() as session:
                store.add_notice(session, run_id, level="info", message="a word", step=step)
                store.add_notice(
                    session, run_id, level="warning", message="it rose", kind="divergence"
                )
    with database.writing() as session:
        store.end_run(session, run_id, "finished")
    return run_id


def stream(client: TestClient, run_id: str, after: int = 0) -> str:
    answer = client.get(f"/api/runs/{run_id}/events", headers={"Last-Event-ID": str(after)})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.text


def test_all_that_a_run_told_comes_in_order_and_the_stream_ends_with_the_run(
    client: TestClient, told: str
) -> None:
    events = list(parsed(stream(client, told)))
    assert [e.name for e in events].count("snapshot") == 3
    assert [(e.name, e.data["message"]) for e in events if e.name in ("notice", "alert")] == [
        ("notice", "a word"),
        ("alert", "it rose"),
    ]
    assert events[-1].name == "status"
    assert events[-1].data == {"status": "finished", "step": 0, "error": None}
    points: dict[int, dict[str, float]] = {}
    for event in events:
        if event.name == "metrics":
            points.setdefault(event.data["step"], {}).update(event.data["values"])
    assert points == {
        step: {"fvu": 1 / step} | ({"eval_fvu": 0.5} if step % 10 == 0 else {})
        for step in range(1, STEPS + 1)
    }


def test_from_every_number_on_exactly_the_rest_is_told_again(client: TestClient, told: str) -> None:
    whole = stream(client, told)
    numbers = numbers_told(whole)
    assert numbers == sorted(set(numbers))
    for number in numbers[:-1]:
        rest = stream(client, told, after=number)
        cut = whole.split(f"id: {number}\n\n", 1)[1]
        assert list(parsed(rest)) == list(parsed(cut))
    assert client.get(f"/api/runs/{told}/events?after={numbers[-1]}").status_code == 204
    run = client.get(f"/api/runs/{told}").json()
    assert run["revision"] == numbers[-1]


def test_a_listener_hears_a_run_from_its_queue_to_its_end(client: TestClient) -> None:
    run = create(client, "finish")
    text = client.get(f"/api/runs/{run.id}/events?after={run.revision}").text
    events = list(parsed(text))
    assert {e.data["step"] for e in events if e.name == "metrics"} == set(range(1, 21))
    [strange] = {e.data["values"]["fvu"] for e in events if e.name == "metrics" and
                 e.data["step"] == 7}  # fmt: skip
    assert strange == "NaN"
    assert events[-1].data["status"] == wait_for_status(client, run.id, "finished").status


def test_many_listeners_hear_the_same_as_it_happens(database: Database) -> None:
    with database.writing() as session:
        run_id = store.add_run(session, config=resolve_config("tiny", {}), status="running").id

    def tell(step: int) -> None:
        record = MetricsRecord(step=step, tokens=step, time=1.0, values={"fvu": 0.5})
        with database.writing() as session:
            store.add_metrics(session, run_id, [record])

    async def listen(feed: EventFeed) -> list[str]:
        async with aclosing(feed.follow(run_id, 0)) as events:
            return [text async for text in events]

    async def scene() -> list[list[str]]:
        feed = EventFeed(database, poll_seconds=0.02)
        listeners = [asyncio.create_task(listen(feed)) for _ in range(50)]
        for step in range(1, 6):
            await asyncio.to_thread(tell, step)
            await asyncio.sleep(0.03)
        with database.writing() as session:
            store.end_run(session, run_id, "stopped")
        return await asyncio.wait_for(asyncio.gather(*listeners), 30)

    heard = asyncio.run(scene())
    assert len(heard[0]) > 1
    for texts in heard:
        events = list(parsed("".join(texts)))
        assert [e.data["step"] for e in events if e.name == "metrics"] == [1, 2, 3, 4, 5]
        assert events[-1].data["status"] == "stopped"


def test_the_stream_of_a_deleted_run_ends(database: Database) -> None:
    with database.writing() as session:
        run_id = store.add_run(session, config=resolve_config("tiny", {})).id

    async def scene() -> list[str]:
        feed = EventFeed(database, poll_seconds=0.02)
        async with aclosing(feed.follow(run_id, 0)) as events:
            waiting = asyncio.ensure_future(anext(events, "ended"))
            await asyncio.sleep(0.05)
            with database.writing() as session:
                store.delete_run(session, run_id)
            return [await asyncio.wait_for(waiting, 30)]

    assert asyncio.run(scene()) == ["ended"]


@pytest.mark.parametrize("after", ["-1", "x", str(2**31)])
def test_a_number_that_cannot_be_is_refused(client: TestClient, told: str, after: str) -> None:
    assert client.get(f"/api/runs/{told}/events?after={after}").status_code == 422
    assert client.get("/api/runs/none/events").status_code == 404
