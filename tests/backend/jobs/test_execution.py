"""However a run ends, its row says so; and it waits for a database that is unavailable."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from types import SimpleNamespace

import pytest
from sqlalchemy import Connection, event

from backend import store
from backend.http.curves import metrics_series
from backend.jobs import execution, worker
from backend.jobs.execution import (
    Pace,
    StopRequests,
    Terminated,
    execute,
    exit_code,
    no_request,
    raise_terminated,
)
from backend.jobs.recorder import BATCH_SECONDS
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.errors import ConfigError, DiskFullError
from sae_engine.schema.records import AnyRecord, EndRecord, PhaseRecord, StopRequest
from sae_engine.training.member import Member
from tests.backend.fake_engine import TOTAL_STEPS, measured
from tests.backend.fake_engine import train as fake_train
from tests.backend.jobs.bench import JOB, Bench, ShouldStop
from tests.backend.postgres import Postgres

both_databases = pytest.mark.both_databases


def raising(error: BaseException) -> Callable[[ShouldStop], Iterator[AnyRecord]]:
    def records(_: ShouldStop) -> Iterator[AnyRecord]:
        yield PhaseRecord(phase="training")
        raise error

    return records


@both_databases
def test_a_finished_run_leaves_its_curve_snapshots_notices_and_figures(bench: Bench) -> None:
    [status] = execute(bench.database, {bench.id: bench.member}, fake_train, job=JOB)
    row = bench.row()
    assert status == row.status == "finished"
    assert (row.step, row.tokens, row.total_steps, row.total_tokens) == (20, 2000, 20, 2000)
    assert row.ended_at is not None
    assert (row.phase, row.eta_seconds, row.error_type) == (None, None, None)
    assert json.loads(row.metrics) == {"loss": 0.05, "fvu": 0.05, "l0": 4.0, "eval_fvu": 0.1}
    with bench.database.reading() as session:
        series = metrics_series(store.metrics(session, bench.id))
        [snapshot] = store.snapshots(session, bench.id)
        alert, notice = store.notices(session, bench.id)
    assert series.step == list(range(1, TOTAL_STEPS + 1))
    assert series.series["fvu"][6] == "NaN"
    assert [v for v in series.series["eval_fvu"] if v is not None] == [0.2, 0.1]
    assert (snapshot.step, snapshot.final, snapshot.index_tokens) == (20, True, 50)
    assert (alert.kind, alert.step) == ("non_finite", 7)
    assert (notice.level, notice.message, notice.step) == ("warning", "One latent is dead.", 20)


@pytest.mark.parametrize(
    ("error", "status", "kind", "message"),
    [
        (ConfigError.of("sae.k", "Too large."), "failed", "ConfigError", "sae.k: Too large."),
        (ZeroDivisionError("a\nb"), "failed", "ZeroDivisionError", "a"),
        (MemoryError(), "failed", "MemoryError", "No reason given; see the log."),
        (Terminated("SIGTERM"), "interrupted", "SIGTERM", "interrupted by SIGTERM."),
    ],
)  # fmt: skip
@both_databases
def test_an_exception_ends_the_run_with_one_sentence_and_the_log(
    bench: Bench, error: BaseException, status: str, kind: str, message: str
) -> None:
    bench.folder.log.write_text("a line\nthe last line\n")
    logging.disable(logging.CRITICAL)
    try:
        assert bench.execute(raising(error)) == status
    finally:
        logging.disable(logging.NOTSET)
    row = bench.row()
    assert (row.status, row.error_type) == (status, kind)
    assert (row.error_message or "").endswith(message)
    assert row.error_log_tail == "a line\nthe last line\n"
    assert "Traceback" not in (row.error_message or "")


@both_databases
def test_an_engine_that_stops_without_an_end_record_fails_the_run(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    assert bench.execute(lambda _: iter([PhaseRecord(phase="training")])) == "failed"
    assert "without reporting how" in (bench.row().error_message or "")
    assert "Traceback" in caplog.text


@both_databases
def test_measurements_before_a_failure_are_stored(bench: Bench) -> None:
    def records(_: ShouldStop) -> Iterator[AnyRecord]:
        for step in range(1, 6):
            yield measured(step)
        raise ConfigError.of("", "Enough.")

    bench.execute(records)
    with bench.database.reading() as session:
        assert len(store.metrics(session, bench.id)) == 5


@both_databases
def test_a_stop_request_in_the_row_reaches_the_engine(bench: Bench) -> None:
    def records(should_stop: ShouldStop) -> Iterator[AnyRecord]:
        assert should_stop() == StopRequest.NONE
        with bench.database.writing() as session:
            store.request_stop(session, bench.id, force=False)
        while should_stop() == StopRequest.NONE:
            pass
        yield EndRecord(reason="stopped", step=3, tokens=300)

    assert bench.execute(records) == "stopped"
    assert bench.row().status == "stopped"


@pytest.mark.parametrize(("node", "seconds"), [("", 0.25), ("a", 1.0)])
def test_a_job_on_a_node_of_a_cluster_looks_for_stop_requests_less_often(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, node: str, seconds: float
) -> None:
    now = [100.0]
    monkeypatch.setattr(execution, "time", SimpleNamespace(monotonic=lambda: now[0]))
    requests = StopRequests(bench.database, [bench.id], no_request, JOB, worker.pace_on(node))
    assert requests.of(bench.id) is StopRequest.NONE
    with bench.database.writing() as session:
        store.request_stop(session, bench.id, force=False)
    now[0] = 100 + seconds - 0.01
    assert requests.of(bench.id) is StopRequest.NONE
    now[0] = 100 + seconds
    assert requests.of(bench.id) is StopRequest.STOP


@both_databases
def test_a_job_reports_from_long_work_that_it_is_alive(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where a supervisor on another machine may read it, and only for its own runs."""
    monkeypatch.setattr(execution, "REPORT_SECONDS", 0.4)
    reported: list[object] = []
    with bench.database.writing() as session:
        other = store.add_run(session, config=bench.config, status="running", job="other").id

    def train(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
        yield 0, PhaseRecord(phase="loading")
        first = bench.row().reported_at
        began = time.monotonic()
        while time.monotonic() < began + 1:
            for member in members:
                member.should_stop()
            at = bench.row().reported_at
            if at != first and at not in reported:
                reported.append(at)
        for number in range(len(members)):
            yield number, EndRecord(reason="stopped", step=0, tokens=0)

    members = dict.fromkeys((bench.id, other), bench.member)
    execute(bench.database, members, train, job=JOB, pace=Pace(poll_seconds=0.01))
    assert len(reported) in ([0] if bench.database.is_sqlite else [1, 2])
    with bench.database.reading() as session:
        assert store.get_run(session, other).reported_at is None


@both_databases
def test_quick_measurements_are_stored_with_the_next_record(
    bench: Bench,
) -> None:
    """A stop request is only read: asking for it stores nothing."""

    def num_stored() -> int:
        with bench.database.reading() as session:
            return len(store.metrics(session, bench.id))

    def records(should_stop: ShouldStop) -> Iterator[AnyRecord]:
        yield measured(1)
        assert num_stored() == 1
        yield measured(2)
        time.sleep(2 * BATCH_SECONDS)
        should_stop()
        assert num_stored() == 1
        yield measured(3)
        assert num_stored() == 3
        yield EndRecord(reason="finished", step=3, tokens=300)

    assert bench.execute(records) == "finished"


@both_databases
def test_each_run_on_a_pass_ends_in_its_own_way(database: Database, settings: Settings) -> None:
    benches = [Bench(database, settings, name) for name in ("finish", "diverge", "finish too")]
    assert execute(database, {b.id: b.member for b in benches}, fake_train, job=JOB) == [
        "finished",
        "failed",
        "finished",
    ]
    rows = [bench.row() for bench in benches]
    assert [row.status for row in rows] == ["finished", "failed", "finished"]
    assert rows[1].error_type == "NonFiniteLossError"
    assert rows[1].error_message == "The loss became nan at step 7."
    assert [row.step for row in rows] == [20, 0, 20]


@both_databases
def test_an_error_of_the_pass_ends_the_runs_still_on_it(
    database: Database, settings: Settings
) -> None:
    benches = [Bench(database, settings, name) for name in ("diverge", "refuse", "finish")]
    assert (
        execute(database, {b.id: b.member for b in benches}, fake_train, job=JOB) == ["failed"] * 3
    )
    kinds = [bench.row().error_type for bench in benches]
    assert kinds == ["NonFiniteLossError", "UserError", "UserError"]


@both_databases
def test_each_run_on_a_pass_gets_its_own_stop_request(
    database: Database, settings: Settings
) -> None:
    benches = [Bench(database, settings, name) for name in ("a", "b", "c")]
    wanted = [StopRequest.NONE, StopRequest.STOP, StopRequest.FORCE]

    def train(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
        with database.writing() as session:
            store.request_stop(session, benches[1].id, force=False)
            store.request_stop(session, benches[2].id, force=True)
        while [member.should_stop() for member in members] != wanted:
            pass
        for number in range(len(members)):
            yield number, EndRecord(reason="stopped", step=1, tokens=1)

    assert execute(database, {b.id: b.member for b in benches}, train, job=JOB) == ["stopped"] * 3


def ending(status: str = "finished") -> EndRecord:
    return EndRecord.model_validate({"reason": status, "step": 20, "tokens": 2000})


@contextmanager
def write_lock(settings: Settings) -> Iterator[None]:
    """Another connection that holds the SQLite database's write lock."""
    path = settings.resolved_database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


@pytest.fixture
def impatient(settings: Settings, bench: Bench) -> Iterator[Bench]:
    """A bench whose tries to write give up after 50 ms."""
    bench.database = Database(settings.resolved_database_url, busy_seconds=0.05)
    yield bench
    bench.database.close()


def steps_of(bench: Bench) -> list[int]:
    with bench.database.reading() as session:
        return store.metrics(session, bench.id).step.tolist()


def test_a_locked_database_delays_a_run_and_loses_nothing(
    impatient: Bench, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock lasts 20 times as long as a try to write; records of every kind wait for it."""

    def records(_: ShouldStop) -> Iterator[AnyRecord]:
        yield measured(1)
        lock = write_lock(settings)
        lock.__enter__()
        release = threading.Timer(1, lambda: lock.__exit__(None, None, None))
        release.start()
        yield measured(7)  # also an alert, as its loss is NaN
        yield PhaseRecord(phase="evaluating")
        release.join()
        yield measured(8)
        yield ending()

    assert impatient.execute(records) == "finished"
    assert steps_of(impatient) == [1, 7, 8]
    row = impatient.row()
    assert (row.status, [alert.kind for alert in row.alerts]) == ("finished", ["non_finite"])
    assert caplog.text.count("the database is unavailable") == 1
    assert caplog.text.count("the database is available again") == 1


@pytest.mark.postgresql
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_restart_of_the_database_server_delays_a_run_and_loses_nothing(
    bench: Bench, postgres: Postgres
) -> None:
    def records(should_stop: ShouldStop) -> Iterator[AnyRecord]:
        yield measured(1)
        for first in (2, 4):
            postgres.stop()
            time.sleep(2 * BATCH_SECONDS)  # the next look for a stop asks the database
            assert should_stop() == StopRequest.NONE
            start = threading.Timer(0.5, postgres.start)
            start.start()
            yield measured(first)
            start.join()
            yield measured(first + 1)
        yield ending()

    try:
        assert bench.execute(records) == "finished"
    finally:
        with suppress(AssertionError):  # it runs, unless the test failed
            postgres.start()
    assert steps_of(bench) == [1, 2, 3, 4, 5]
    assert bench.row().status == "finished"


def test_a_signal_ends_a_run_that_waits_for_the_database(
    impatient: Bench, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The supervisor records the end that the process could not."""

    def records(_: ShouldStop) -> Iterator[AnyRecord]:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        yield measured(1)
        raise AssertionError("the database was locked")

    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        with write_lock(settings):
            began = time.monotonic()
            assert impatient.execute(records) == "interrupted"
            assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "cannot record that the run was interrupted" in caplog.text
    assert impatient.row().status == "running"


def test_a_full_disk_is_not_waited_for(bench: Bench) -> None:
    def records(_: ShouldStop) -> Iterator[AnyRecord]:
        with bench.database.engine.connect() as connection:
            [pages] = connection.exec_driver_sql("PRAGMA page_count").one()
        limit_pages(pages)
        for step in range(1, 10_000):
            yield measured(step)
            yield PhaseRecord(phase="training")

    def limit_pages(pages: int) -> None:
        @event.listens_for(bench.database.engine, "begin")
        def _limit(connection: Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(DiskFullError, match="The disk that holds the database is full"):
        bench.execute(records)


def test_a_stop_request_of_this_process_is_stored_with_the_next_record(bench: Bench) -> None:
    request = StopRequest.NONE
    statuses: list[str] = []

    def train(members: Sequence[Member]) -> Iterator[tuple[int, AnyRecord]]:
        nonlocal request
        [member] = members
        for request in (StopRequest.STOP, StopRequest.FORCE):
            assert member.should_stop() is request
            statuses.append(bench.row().status)
            yield 0, PhaseRecord(phase="stopping")
            statuses.append(bench.row().status)
        assert bench.row().force_stop_at is not None
        yield 0, ending("stopped")

    members = {bench.id: bench.member}
    assert execute(bench.database, members, train, job=JOB, asked=lambda: request) == ["stopped"]
    assert statuses == ["running", "stopping", "stopping", "stopping"]
    assert bench.row().status == "stopped"


def test_the_exit_code_is_the_worst_of_the_runs() -> None:
    assert exit_code([]) == exit_code(["finished", "stopped"]) == 0
    assert exit_code(["failed", "finished"]) == 1
    assert exit_code(["interrupted", "failed"]) == 143
    assert exit_code(["interrupted"], signal.SIGINT) == 130
