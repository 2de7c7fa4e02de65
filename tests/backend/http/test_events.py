"""A run's event stream is complete, ordered, and can be resumed from any event."""

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
    """An event stream as a browser's EventSource reads it; events without data are skipped."""
    last_id = None
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        last_id = int(fields["id"]) if "id" in fields else last_id
        if "data" in fields:
            number = int(fields["id"]) if "id" in fields else None
            yield Received(number, fields["event"], json.loads(fields["data"]))


def event_numbers(text: str) -> list[int]:
    return [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]


@pytest.fixture
def run_id(database: Database) -> str:
    """A run with many events that has ended; every transaction reports one or two."""
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


def test_the_stream_of_an_ended_run_has_all_events_in_order(
    client: TestClient, run_id: str
) -> None:
    events = list(parsed(stream(client, run_id)))
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


def test_a_stream_resumed_after_any_event_has_exactly_the_rest(
    client: TestClient, run_id: str
) -> None:
    whole = stream(client, run_id)
    numbers = event_numbers(whole)
    assert numbers == sorted(set(numbers))
    for number in numbers[:-1]:
        rest = stream(client, run_id, after=number)
        cut = whole.split(f"id: {number}\n\n", 1)[1]
        assert list(parsed(rest)) == list(parsed(cut))
    assert client.get(f"/api/runs/{run_id}/events?after={numbers[-1]}").status_code == 204
    run = client.get(f"/api/runs/{run_id}").json()
    assert run["revision"] == numbers[-1]


def test_a_listener_follows_a_run_from_queue_to_end(client: TestClient) -> None:
    run = create(client, "finish")
    text = client.get(f"/api/runs/{run.id}/events?after={run.revision}").text
    events = list(parsed(text))
    metrics = [e.data for e in events if e.name == "metrics"]
    assert {data["step"] for data in metrics} == set(range(1, 21))
    assert {data["values"]["fvu"] for data in metrics if data["step"] == 7} == {"NaN"}
    assert events[-1].data["status"] == wait_for_status(client, run.id, "finished").status


def test_simultaneous_listeners_receive_the_same_events(database: Database) -> None:
    with database.writing() as session:
        run_id = store.add_run(session, config=resolve_config("tiny", {}), status="running").id

    def report(step: int) -> None:
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
            await asyncio.to_thread(report, step)
            await asyncio.sleep(0.03)
        with database.writing() as session:
            store.end_run(session, run_id, "stopped")
        return await asyncio.wait_for(asyncio.gather(*listeners), 30)

    received = asyncio.run(scene())
    assert len(received[0]) > 1
    for texts in received:
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


def test_listeners_of_a_feed_that_fails_are_disconnected_and_can_reconnect(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with database.writing() as session:
        run_id = store.add_run(session, config=resolve_config("tiny", {}), status="running").id

    def report(message: str) -> None:
        with database.writing() as session:
            store.add_notice(session, run_id, level="info", message=message)

    async def scene() -> None:
        feed = EventFeed(database, poll_seconds=0.02)
        report("first")
        async with aclosing(feed.follow(run_id, 0)) as one, aclosing(feed.follow(run_id, 0)) as two:
            for events in (one, two):
                assert "first" in await anext(events)
            waiting = [asyncio.ensure_future(anext(events, "ended")) for events in (one, two)]
            with monkeypatch.context() as broken:
                broken.setattr(store, "latest_revisions", lambda *_: {}[run_id])
                ended = await asyncio.wait_for(asyncio.gather(*waiting), 30)
            assert ended == ["ended", "ended"]
        async with aclosing(feed.follow(run_id, 1)) as again:
            following = asyncio.ensure_future(anext(again))
            await asyncio.sleep(0.05)
            report("second")
            assert "second" in await asyncio.wait_for(following, 30)

    asyncio.run(scene())
    assert "KeyError" in caplog.text


@pytest.mark.parametrize("after", ["-1", "x", str(2**31)])
def test_an_invalid_event_number_is_refused(client: TestClient, run_id: str, after: str) -> None:
    assert client.get(f"/api/runs/{run_id}/events?after={after}").status_code == 422
    assert client.get("/api/runs/none/events").status_code == 404


def test_listeners_beyond_the_limit_are_sent_away_even_if_they_come_at_once(
    database: Database, run_id: str
) -> None:
    async def follow_twice() -> list[str]:
        feed = EventFeed(database, max_listeners=1)
        async with aclosing(feed.follow(run_id, 0)) as first:
            await anext(first)
            assert feed.is_full()
            return [text async for text in feed.follow(run_id, 0)]

    [told] = asyncio.run(follow_twice())
    assert told == "retry: 10000\n\n"
