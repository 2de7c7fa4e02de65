"""A run has one job and one supervisor, however many servers share its database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text, update

from backend import store
from backend.jobs.execution import StopRequests, Terminated, execute
from backend.jobs.supervisor import Supervisor
from backend.processes import ProcessId, is_elsewhere, start_of, this_process
from backend.settings import Settings
from backend.store import label_jobs
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.schema.records import (
    AnyRecord,
    EndRecord,
    NoticeRecord,
    PhaseRecord,
    SnapshotRecord,
    StopRequest,
)
from tests.backend.conftest import claim_next, wait_for
from tests.backend.fake_engine import fake_job, measured
from tests.backend.jobs.bench import JOB, Bench
from tests.backend.jobs.test_supervisor import add, row_of

both_databases = pytest.mark.both_databases
OTHER_BOOT = 2.0**33
"""Added to a start, it makes it one of another machine; starts below are times."""
NOBODY = ProcessId(2**22 - 1, OTHER_BOOT)
MINE = ProcessId(os.getpid(), OTHER_BOOT)


def taken_over(bench: Bench) -> None:
    with bench.database.writing() as session:
        session.execute(update(RunRow).values(job=store.new_job(bench.id)))


def given_up(bench: Bench) -> None:
    with bench.database.writing() as session:
        store.fail_run(session, bench.id, "interrupted", kind="k", message="m", log_tail="")


def queued_again(bench: Bench) -> None:
    given_up(bench)
    with bench.database.writing() as session:
        store.requeue(session, bench.id)


def started_again(bench: Bench) -> None:
    queued_again(bench)
    with bench.database.writing() as session:
        [row] = claim_next(session)
        assert row.job is not None
        assert store.take_over(session, row.job, NOBODY)


@both_databases
@pytest.mark.parametrize("lose", [taken_over, given_up, queued_again, started_again])
def test_a_superseded_job_ends_and_changes_no_row(
    bench: Bench, lose: Callable[[Bench], None]
) -> None:
    before: list[object] = []

    def snapshot() -> list[object]:
        row = bench.row()
        with bench.database.reading() as session:
            steps = store.metrics(session, bench.id).step.tolist()
            notices = len(store.notices(session, bench.id))
        columns = {c.key: getattr(row, c.key) for c in RunRow.__table__.columns}
        return [columns, steps, notices]

    def train(members) -> Iterator[tuple[int, AnyRecord]]:
        [member] = members
        yield 0, PhaseRecord(phase="training")
        yield 0, measured(1)
        yield 0, PhaseRecord(phase="still training")  # stores what waits
        lose(bench)
        before[:] = snapshot()
        wait_for(lambda: member.should_stop() is StopRequest.FORCE)
        yield 0, measured(7)
        yield 0, NoticeRecord(level="warning", message="Nobody reads this.", step=7)
        yield 0, SnapshotRecord(step=7, tokens=700, index_tokens=50, seconds=0.1, final=False)
        yield 0, PhaseRecord(phase="not training any more")
        yield 0, EndRecord(reason="stopped", step=7, tokens=700)

    execute(bench.database, {bench.id: bench.member}, train, job=JOB)
    assert before[1] == [1]
    assert snapshot() == before


@both_databases
@pytest.mark.parametrize("num_runs", [1, 2])
def test_a_superseded_job_writes_no_checkpoint(
    database: Database, settings: Settings, num_runs: int
) -> None:
    """The job that has its runs now might resume from it without the measurements before it."""
    benches = [Bench(database, settings) for _ in range(num_runs)]
    done: list[str] = []

    def train(_) -> Iterator[tuple[int, AnyRecord]]:
        try:
            yield 0, measured(1)
            yield 0, PhaseRecord(phase="saving a checkpoint")
            done.append("saved the first")
            yield 0, measured(2)
            for bench in benches:
                given_up(bench)
            yield 0, PhaseRecord(phase="saving a checkpoint")
            done.append("saved another")
        finally:
            done.append("closed")

    execute(database, {bench.id: bench.member for bench in benches}, train, job=JOB)
    assert done == ["saved the first", "closed"]


@both_databases
@pytest.mark.parametrize("ends", ["failed", "interrupted"])
def test_a_superseded_job_that_fails_or_is_ended_changes_no_row(bench: Bench, ends: str) -> None:
    def train(_) -> Iterator[tuple[int, AnyRecord]]:
        yield 0, PhaseRecord(phase="training")
        started_again(bench)
        raise Terminated("SIGTERM") if ends == "interrupted" else ZeroDivisionError("a bug")

    execute(bench.database, {bench.id: bench.member}, train, job=JOB)
    assert (bench.row().status, bench.row().error_type) == ("running", None)
    assert bench.row().process == NOBODY


@both_databases
def test_a_run_of_a_pass_is_lost_alone(database: Database, settings: Settings) -> None:
    lost, kept = [Bench(database, settings) for _ in range(2)]
    members = {bench.id: bench.member for bench in (lost, kept)}

    def train(members) -> Iterator[tuple[int, AnyRecord]]:
        given_up(lost)
        wait_for(lambda: members[0].should_stop() is StopRequest.FORCE)
        assert members[1].should_stop() is StopRequest.NONE
        for number in (0, 1):
            yield number, EndRecord(reason="finished", step=7, tokens=700)

    execute(database, members, train, job=JOB)
    assert [bench.row().status for bench in (lost, kept)] == ["interrupted", "finished"]


@both_databases
def test_only_the_first_process_of_the_current_job_takes_its_runs(database: Database) -> None:
    [run_id] = add(database, "finish")
    with database.writing() as session:
        [row] = claim_next(session)
        first = row.job
        store.put_back(session, [run_id])
        [row] = claim_next(session)
        second = row.job
        assert first != second
        assert first is not None
        assert second is not None
        assert store.take_over(session, first, MINE) == []
        assert [row.id for row in store.take_over(session, second, MINE)] == [run_id]
        assert store.take_over(session, second, MINE._replace(pid=MINE.pid + 1)) == []
        assert store.take_over(session, second, MINE._replace(created=MINE.created + 1)) == []
        assert store.take_over(session, second, MINE)  # again, if it got no answer
    assert row_of(database, run_id).process == MINE


def test_a_stop_request_of_a_superseded_process_is_not_stored(bench: Bench) -> None:
    requests = StopRequests(bench.database, [bench.id], lambda: StopRequest.STOP, "another")
    requests.store_asked()
    assert bench.row().status == "running"
    StopRequests(bench.database, [bench.id], lambda: StopRequest.STOP, JOB).store_asked()
    assert bench.row().status == "stopping"


@both_databases
def test_a_superseded_job_does_not_report_that_it_is_alive(bench: Bench) -> None:
    reported_at = bench.row().reported_at
    with bench.database.writing() as session:
        store.report_alive(session, "another")
    assert bench.row().reported_at == reported_at
    with bench.database.writing() as session:
        store.report_alive(session, JOB)
    assert bench.row().reported_at != reported_at


@both_databases
def test_servers_with_different_folders_on_one_database_have_one_supervisor(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    url = settings.resolved_database_url
    run_ids = add(database, "finish", count=2)
    with closing(Database(url)) as second_database:
        settings = settings.model_copy(update={"database_url": url})
        second = settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
        servers = [
            Supervisor(each, opened, command=fake_job, poll_seconds=0.02)
            for each, opened in ((settings, database), (second, second_database))
        ]
        second.data_dir.mkdir()
        for server in servers:
            server.start()
        wait_for(lambda: all(row_of(database, i).status == "finished" for i in run_ids))
        assert [server.supervises for server in servers].count(True) == 1
        [holder] = [server for server in servers if server.supervises]
        [other] = [server for server in servers if server is not holder]
        holder.close()
        wait_for(lambda: other.supervises)
        other.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.postgresql
def test_a_supervisor_whose_connection_was_lost_takes_the_lock_again(
    settings: Settings, database: Database
) -> None:
    supervisor = Supervisor(settings, database, command=fake_job, poll_seconds=0.02)
    supervisor.start()
    wait_for(lambda: supervisor.supervises)
    end_it = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
    with database.reading() as session:
        assert session.execute(text(end_it)).all()
    [run_id] = add(database, "finish")
    wait_for(lambda: row_of(database, run_id).status == "finished")
    assert supervisor.supervises
    supervisor.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.postgresql
def test_a_run_on_another_machine_is_judged_by_its_reports(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, foreign = add(database, "wait", count=2)
    dead = ProcessId(2**22 - 1, start_of(os.getpid()))
    assert not is_elsewhere(dead.created)
    with database.writing() as session:
        for run_id, process in (
            (own, dead),
            (foreign, dead._replace(created=dead.created + OTHER_BOOT)),
        ):
            [row] = claim_next(session, f"cpu#{run_id}")
            assert row.job is not None
            assert store.take_over(session, row.job, process)
    supervisor = Supervisor(
        settings, database, command=fake_job, poll_seconds=0.02, patience=timedelta(seconds=0)
    )
    supervisor.start()
    wait_for(lambda: row_of(database, own).status == "interrupted")
    assert row_of(database, foreign).status == "running"
    with database.writing() as session:
        store.request_stop(session, foreign, force=True)
    wait_for(lambda: row_of(database, foreign).status == "interrupted")
    supervisor.close()


@both_databases
def test_a_label_job_on_another_machine_is_not_taken_for_dead(bench: Bench) -> None:
    process = this_process()
    foreign = process._replace(created=process.created + OTHER_BOOT)
    with bench.database.writing() as session:
        label_jobs.add_label_job(
            session, bench.id, snapshot=1, model="m", total=1,
            pid=foreign.pid, pid_created=foreign.created,
        )  # fmt: skip
        label_jobs.settle_label_jobs(session)
        [row] = label_jobs.label_jobs(session, bench.id)
    assert (row.status == "running") == (not bench.database.is_sqlite)


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
@pytest.mark.parametrize(
    ("path", "name"),
    [("runs.db", "runs.db.lock"), ("workbench.sqlite3?timeout=5", "supervisor.lock")],
)
def test_the_lock_lies_beside_the_database_however_its_url_is_written(
    tmp_path: Path, scheme: str, path: str, name: str
) -> None:
    settings = Settings(data_dir=tmp_path / "data", database_url=f"{scheme}:///{tmp_path}/{path}")
    assert settings.supervisor_lock == tmp_path.resolve() / name
