"""A start that fails for lack of a resource fails no run; the queue waits and says why."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise

import pytest

from backend import store
from backend.jobs import local_executor
from backend.jobs.shortage import StartPause
from backend.jobs.supervisor import Supervisor
from backend.processes import ProcessId
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.presets import resolve_config
from sae_engine.schema.runs import RunStatus
from tests.backend.conftest import claim_next, wait_for
from tests.backend.fake_engine import fake_job
from tests.backend.jobs.test_supervisor import add, row_of


def short_of(number: int) -> list[str]:
    raise OSError(number, os.strerror(number))


def exits_at_once(_: int) -> list[str]:
    return ["sh", "-c", "exit 3"]


class CountedPause(StartPause):
    """Counts how often it began and ended."""

    failures = ends = 0

    def begin(self, why: str) -> None:
        self.failures += 1
        super().begin(why)

    def end(self) -> None:
        self.ends += 1
        super().end()


def num_queued(database: Database) -> int:
    with database.reading() as session:
        return len(store.queued_runs(session))


@pytest.mark.parametrize(
    ("fail", "number", "words"),
    [
        (short_of, errno.EMFILE, "Too many open files"),
        (short_of, errno.ENOSPC, "No space left on device"),
        (short_of, errno.EAGAIN, "Resource temporarily unavailable"),
        (short_of, errno.EROFS, "Read-only file system"),
        (exits_at_once, 0, "ended with exit code 3 at once"),
    ],
)
def test_queued_runs_survive_a_shortage_and_keep_their_order(
    settings: Settings,
    database: Database,
    fail: Callable[[int], list[str]],
    number: int,
    words: str,
) -> None:
    run_ids = add(database, "finish", count=3)
    tries: list[float] = []
    started: list[str] = []
    is_short = True

    def command(job: str) -> list[str]:
        if is_short:
            tries.append(time.monotonic())
            return fail(number)
        started.append(job.partition("-")[0])
        return [sys.executable, "-c", ""]

    pause = StartPause(first_seconds=0.02)
    supervisor = Supervisor(settings, database, command=command, poll_seconds=0.02, pause=pause)
    supervisor.start()
    try:

        def why() -> str:
            return supervisor.places([]).why_waiting(row_of(database, run_ids[0]))

        wait_for(lambda: words in why())
        assert "trying again" in why()
        wait_for(lambda: len(tries) >= 5)
        pauses = [later - earlier for earlier, later in pairwise(tries)]
        assert all(pause >= 0.02 * 2**i for i, pause in enumerate(pauses)), pauses
        wait_for(lambda: row_of(database, run_ids[0]).status == "queued")
        assert [row_of(database, i).status for i in run_ids[1:]] == ["queued", "queued"]
        is_short = False
        wait_for(lambda: len(started) == len(run_ids))
        assert started == run_ids
        assert "trying again" not in why()
    finally:
        supervisor.close()


@pytest.mark.parametrize("never_started", [False, True])
def test_a_pass_of_eight_runs_that_does_not_start_is_one_failure(
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    never_started: bool,
) -> None:
    monkeypatch.setattr(local_executor, "START_GRACE", timedelta(seconds=0.1))
    config = resolve_config("quick-test", {"name": "finish"})
    with database.writing() as session:
        for seed in range(8):
            each = config.model_copy(update={"seed": seed})
            store.add_run(session, config=each, group_id="g")
        if never_started:
            assert len(claim_next(session)) == 8
    pause = CountedPause(first_seconds=60)
    supervisor = Supervisor(
        settings, database, command=lambda _: exits_at_once(0), poll_seconds=0.02, pause=pause
    )
    supervisor.start()
    wait_for(lambda: pause.failures > 0 and num_queued(database) == 8)
    supervisor.close()
    assert pause.failures == 1


def test_a_run_that_works_does_not_end_the_pause_of_one_that_cannot_start(
    settings: Settings, database: Database
) -> None:
    [works] = add(database, "wait")
    settings = settings.model_copy(update={"devices": ["cpu", "cpu"]})
    pause = CountedPause(first_seconds=0.02)
    supervisor = Supervisor(
        settings,
        database,
        command=lambda job: fake_job(job) if job.startswith(works) else exits_at_once(0),
        poll_seconds=0.02,
        pause=pause,
    )
    supervisor.start()
    wait_for(lambda: row_of(database, works).has_begun)
    ends = pause.ends
    [fails] = add(database, "finish")
    wait_for(lambda: pause.failures >= 5)
    supervisor.close()
    assert pause.ends - ends <= 1
    assert row_of(database, fails).error_type is None


def test_the_pause_doubles_up_to_a_minute_and_starts_over_after_a_success() -> None:
    pause = StartPause(first_seconds=10)
    assert (pause.is_over, pause.reason) == (True, None)
    for seconds in (10, 20, 40, 60, 60):
        pause.begin("No memory")
        assert not pause.is_over
        assert pause.reason == f"No memory; trying again in {seconds} s."
    pause.end()
    assert (pause.is_over, pause.reason) == (True, None)
    pause.begin("No memory")
    assert pause.reason == "No memory; trying again in 10 s."


@pytest.mark.parametrize(("asked", "expected"), [(None, "queued"), (False, "stopped")])
@pytest.mark.both_databases
def test_a_run_put_back_is_next_again_unless_it_was_asked_to_stop(
    database: Database, asked: bool | None, expected: RunStatus
) -> None:
    first, second = add(database, "finish", count=2)
    with database.writing() as session:
        claim_next(session)
        if asked is not None:
            store.request_stop(session, first, force=asked)
        store.put_back(session, [first])
    row = row_of(database, first)
    assert (row.status, row.slot, row.job, row.started_at) == (expected, None, None, None)
    assert (row.ended_at is None) == (expected == "queued")
    with database.reading() as session:
        queue = [row.id for row in store.queued_runs(session)]
    assert queue == ([first, second] if expected == "queued" else [second])


def test_a_run_that_its_process_has_taken_is_not_put_back(database: Database) -> None:
    [run_id] = add(database, "finish")
    with database.writing() as session:
        [row] = claim_next(session)
        assert row.job is not None
        assert store.take_over(session, row.job, ProcessId(7, 7.0))
        store.put_back(session, [run_id])
    assert (row_of(database, run_id).status, row_of(database, run_id).pid) == ("running", 7)


@pytest.mark.parametrize("clock", [timedelta(0), timedelta(minutes=5), timedelta(minutes=-5)])
def test_a_run_claimed_by_a_server_that_died_before_starting_it_is_started(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, clock: timedelta
) -> None:
    """Whatever the clock of that server said."""
    monkeypatch.setattr(local_executor, "START_GRACE", timedelta(seconds=0.1))
    [run_id] = add(database, "finish")
    with database.writing() as session:
        [row] = claim_next(session)
        assert row.started_at is not None
        row.started_at = row.reported_at = row.started_at + clock
    supervisor = Supervisor(
        settings, database, command=fake_job, poll_seconds=0.02, pause=StartPause(0.02)
    )
    supervisor.start()
    wait_for(lambda: row_of(database, run_id).status in ("finished", "interrupted"))
    supervisor.close()
    assert row_of(database, run_id).status == "finished"
