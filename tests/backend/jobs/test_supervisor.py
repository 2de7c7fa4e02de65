"""Real job processes: started, stopped, killed, recognized by a new server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import pytest
from sqlalchemy import text, update
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.jobs.silence import Report
from backend.jobs.supervisor import Supervisor
from backend.processes import ProcessId
from backend.settings import Settings
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.presets import resolve_config
from tests.backend.conftest import URL, claim_next, create, read, wait_for, wait_for_status
from tests.backend.fake_engine import fake_job


def process_of(database: Database, run_id: str) -> int:
    def pid() -> int | None:
        with database.reading() as session:
            return store.get_run(session, run_id).pid

    wait_for(lambda: pid() is not None)
    found = pid()
    assert found is not None
    return found


@contextmanager
def supervised(
    settings: Settings, database: Database, patience: timedelta = timedelta(seconds=30)
) -> Iterator[Supervisor]:
    supervisor = Supervisor(
        settings, database, command=fake_job, poll_seconds=0.05, patience=patience
    )
    supervisor.start()
    yield supervisor
    supervisor.close()


def add(database: Database, name: str, count: int = 1) -> list[str]:
    config = resolve_config("quick-test", {"name": name})
    with database.writing() as session:
        return [store.add_run(session, config=config).id for _ in range(count)]


def row_of(database: Database, run_id: str) -> RunRow:
    with database.reading() as session:
        return store.get_run(session, run_id)


@pytest.mark.both_databases
def test_a_queued_run_is_trained_by_its_own_process(client: TestClient, settings: Settings) -> None:
    run = create(client, "finish")
    ended = wait_for_status(client, run.id, "finished", "failed")
    assert ended.status == "finished"
    assert ended.progress.step == 20
    assert ended.metrics["fvu"] == 0.05
    assert not ended.resumable
    log = client.get(f"/api/runs/{run.id}/log")
    assert log.headers["content-type"].startswith("text/plain")
    assert "fake engine: finish, resume=False" in log.text
    assert client.get(f"/api/runs/{run.id}/log?tail=1").text.count("\n") == 1
    metrics = client.get(f"/api/runs/{run.id}/metrics?keys=fvu&since_step=5&max_points=100").json()
    assert metrics["step"] == list(range(6, 21))
    assert metrics["series"]["fvu"][1] == "NaN"
    alert, notice = client.get(f"/api/runs/{run.id}/notices").json()
    assert (alert["kind"], alert["step"], ended.alerts) == ("non_finite", 7, ["non_finite"])
    assert (notice["kind"], notice["message"]) == (None, "One latent is dead.")
    [snapshot] = client.get(f"/api/runs/{run.id}/snapshots").json()
    assert snapshot["index_tokens"] == 50


@pytest.mark.parametrize(
    ("name", "status", "kind", "words"),
    [
        ("refuse", "failed", "UserError", "The text is empty; give a dataset with text."),
        ("break", "failed", "ZeroDivisionError", "a bug"),
        ("exit", "failed", "ProcessExited", "exit code 7"),
        ("die", "interrupted", "SIGKILL", "ran out of memory"),
    ],
)
def test_the_end_of_a_job_is_recorded_with_its_log(
    client: TestClient, name: str, status: str, kind: str, words: str
) -> None:
    run = create(client, name)
    ended = wait_for_status(client, run.id, "failed", "interrupted", "finished")
    assert ended.error is not None
    assert (ended.status, ended.error.type) == (status, kind)
    assert words in ended.error.message
    assert f"fake engine: {name}" in ended.error.log_tail
    assert ("Traceback" in ended.error.log_tail) == (name in ("refuse", "break"))


def test_the_next_job_starts_when_the_previous_one_ends(client: TestClient) -> None:
    first, second = create(client, "wait"), create(client, "finish")
    wait_for_status(client, first.id, "running")
    assert read(client, second.id).status == "queued"
    client.post(f"/api/runs/{first.id}/stop")
    assert wait_for_status(client, second.id, "finished", "failed").status == "finished"


@pytest.mark.both_databases
def test_a_stopped_run_resumes_from_its_checkpoint(
    client: TestClient,
) -> None:
    run = create(client, "wait")
    wait_for_status(client, run.id, "running")
    wait_for(lambda: read(client, run.id).progress.step == 20)
    answer = client.post(f"/api/runs/{run.id}/stop")
    assert answer.status_code == 202
    assert answer.json()["status"] == "stopping"
    assert wait_for_status(client, run.id, "stopped", "failed").resumable
    answer = client.post(f"/api/runs/{run.id}/resume")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    wait_for(lambda: "resume=True" in client.get(f"/api/runs/{run.id}/log").text)
    wait_for(lambda: read(client, run.id).progress.step == 20)
    client.post(f"/api/runs/{run.id}/stop?force=true")
    assert wait_for_status(client, run.id, "stopped", "failed").status == "stopped"
    steps = client.get(f"/api/runs/{run.id}/metrics").json()["step"]
    assert steps == list(range(1, 21))


def test_a_run_without_a_checkpoint_cannot_be_resumed(client: TestClient) -> None:
    run = create(client, "refuse")
    assert not wait_for_status(client, run.id, "failed").resumable
    answer = client.post(f"/api/runs/{run.id}/resume")
    assert answer.status_code == 409
    assert "before its first checkpoint" in answer.json()["detail"]
    assert read(client, run.id).status == "failed"


@pytest.mark.both_databases
def test_a_run_without_progress_for_long_gets_one_alert(
    settings: Settings, database: Database
) -> None:
    [run_id] = add(database, "mute")
    supervisor = Supervisor(
        settings, database, command=fake_job, poll_seconds=0.05, silence=timedelta(seconds=0.5)
    )
    supervisor.start()
    try:
        words = "No progress for 0 minutes (muttering); check its log, or stop it."
        wait_for(lambda: any(a.message == words for a in row_of(database, run_id).alerts))
        time.sleep(0.3)  # many more polls
        alerts = [a for a in row_of(database, run_id).alerts if a.message == words]
        assert [(alert.kind, alert.level) for alert in alerts] == [("no_progress", "warning")]
    finally:
        with database.writing() as session:
            store.request_stop(session, run_id, force=True)
        wait_for(lambda: row_of(database, run_id).status == "stopped")
        supervisor.close()


@pytest.mark.parametrize("change", ["reported_at", "phase", "step", "tokens"])
def test_a_run_that_is_only_alive_makes_no_progress(database: Database, change: str) -> None:
    [run_id] = add(database, "mute")
    earlier = Report.next(None, row_of(database, run_id))
    with database.writing() as session:
        value = {"reported_at": store.now(), "phase": "training"}.get(change, 5)
        session.execute(update(RunRow).values({change: value}))
    row = row_of(database, run_id)
    later = Report.next(earlier, row)
    assert (later.progressed > earlier.progressed) == (change != "reported_at")
    assert later.reported > earlier.reported
    assert later.reported_at == row.reported_at
    assert Report.next(later, row) == later


def test_a_queued_run_is_stopped_without_starting(client: TestClient) -> None:
    blocking, waiting = create(client, "wait"), create(client, "finish")
    assert client.post(f"/api/runs/{waiting.id}/stop").json()["status"] == "stopped"
    assert client.post(f"/api/runs/{waiting.id}/stop").status_code == 409
    client.post(f"/api/runs/{blocking.id}/stop")
    wait_for_status(client, blocking.id, "stopped")
    assert read(client, waiting.id).started_at is None


def test_a_killed_job_is_interrupted_and_the_signal_named(
    client: TestClient, database: Database
) -> None:
    run = create(client, "wait")
    pid = process_of(database, run.id)
    assert psutil.Process(pid).nice() == 0 or read(client, run.id).device == "cpu"
    os.kill(pid, signal.SIGKILL)
    ended = wait_for_status(client, run.id, "interrupted", "failed")
    assert ended.error is not None
    assert (ended.status, ended.error.type) == ("interrupted", "SIGKILL")


def test_what_a_killed_job_left_half_written_is_removed(
    client: TestClient, database: Database, settings: Settings
) -> None:
    run = create(client, "wait")
    pid = process_of(database, run.id)
    folder = settings.run_folder(run.id)
    half = folder.checkpoints / ".last.safetensors.1234abcd.tmp"
    for path in (folder.sae, half):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not half.exists())
    assert read(client, run.id).status == "interrupted"
    assert folder.sae.exists()


def test_a_terminated_job_records_its_own_end(client: TestClient, database: Database) -> None:
    run = create(client, "wait")
    wait_for(lambda: read(client, run.id).progress.step == 20)
    os.kill(process_of(database, run.id), signal.SIGTERM)
    ended = wait_for_status(client, run.id, "interrupted", "failed")
    assert ended.error is not None
    assert (ended.status, ended.error.type) == ("interrupted", "SIGTERM")
    assert ended.resumable


def test_a_new_server_recognizes_a_running_job_and_can_stop_it(
    settings: Settings, database: Database
) -> None:
    with TestClient(create_app(settings, command=fake_job), URL) as client:
        run = create(client, "wait")
        wait_for(lambda: read(client, run.id).progress.step == 20)
        pid = process_of(database, run.id)
    assert psutil.pid_exists(pid)
    with TestClient(create_app(settings, command=fake_job), URL) as client:
        wait_for(lambda: client.get("/api/system").json()["supervises"])
        assert read(client, run.id).status == "running"
        client.post(f"/api/runs/{run.id}/stop")
        assert wait_for_status(client, run.id, "stopped", "interrupted").status == "stopped"


def test_a_job_records_its_end_while_no_server_runs(settings: Settings, database: Database) -> None:
    with TestClient(create_app(settings, command=fake_job), URL) as client:
        run = create(client, "wait")
        wait_for(lambda: read(client, run.id).progress.step == 20)
    with database.writing() as session:
        store.request_stop(session, run.id, force=False)
    wait_for(lambda: row_of(database, run.id).status == "stopped")


@pytest.mark.both_databases
def test_a_job_killed_while_no_server_ran_is_interrupted_at_the_next_start(
    settings: Settings, database: Database
) -> None:
    with TestClient(create_app(settings, command=fake_job), URL) as client:
        run = create(client, "wait")
        wait_for(lambda: read(client, run.id).progress.step == 20)
    os.kill(process_of(database, run.id), signal.SIGKILL)
    with TestClient(create_app(settings, command=fake_job), URL) as client:
        ended = wait_for_status(client, run.id, "interrupted")
        assert ended.error is not None
        assert ended.error.type == "ProcessVanished"
        assert ended.resumable


def test_a_process_with_the_number_of_a_dead_job_is_not_mistaken_for_it(
    settings: Settings, database: Database
) -> None:
    [run_id] = add(database, "wait")
    with database.writing() as session:
        [row] = claim_next(session)
        assert row.job is not None
        assert store.take_over(session, row.job, ProcessId(os.getpid(), 1.0))
    with supervised(settings, database):
        wait_for(lambda: row_of(database, run_id).status == "interrupted")


@pytest.mark.both_databases
def test_a_job_that_ignores_a_forced_stop_is_killed(settings: Settings, database: Database) -> None:
    [run_id] = add(database, "deaf")
    with supervised(settings, database, patience=timedelta(seconds=0)):
        wait_for(lambda: row_of(database, run_id).step == 20)
        with database.writing() as session:
            store.request_stop(session, run_id, force=True)
        wait_for(lambda: row_of(database, run_id).status == "interrupted")
    assert row_of(database, run_id).error_type == "SIGTERM"


@pytest.mark.both_databases
def test_two_supervisors_on_one_folder_start_each_run_once(
    settings: Settings, database: Database
) -> None:
    run_ids = add(database, "finish", count=3)
    with supervised(settings, database) as one, supervised(settings, database) as other:
        wait_for(lambda: all(row_of(database, i).status == "finished" for i in run_ids))
        assert [one.supervises, other.supervises].count(True) == 1
    for run_id in run_ids:
        assert settings.run_folder(run_id).log.read_text().count("fake engine") == 1


def test_a_second_supervisor_takes_over_when_the_first_closes(
    settings: Settings, database: Database
) -> None:
    with supervised(settings, database) as first:
        wait_for(lambda: first.supervises)
        second = Supervisor(settings, database, command=fake_job, poll_seconds=0.05)
        second.start()
        [run_id] = add(database, "finish")
        wait_for(lambda: row_of(database, run_id).status == "finished")
        assert not second.supervises
    wait_for(lambda: second.supervises)
    second.close()


def test_a_command_that_cannot_be_started_fails_the_run(
    settings: Settings, database: Database
) -> None:
    [run_id] = add(database, "finish")
    supervisor = Supervisor(
        settings, database, command=lambda _: ["/no/such/program"], poll_seconds=0.05
    )
    supervisor.start()
    wait_for(lambda: row_of(database, run_id).status == "failed")
    supervisor.close()
    assert "could not be started" in (row_of(database, run_id).error_message or "")


def test_a_lasting_error_is_logged_once(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with database.writing() as session:
        session.execute(text("ALTER TABLE runs RENAME TO hidden"))
    with supervised(settings, database):
        wait_for(lambda: "supervising failed" in caplog.text)
        time.sleep(0.5)  # ten more polls
        assert caplog.text.count("supervising failed") == 1
        with database.writing() as session:
            session.execute(text("ALTER TABLE hidden RENAME TO runs"))
        [run_id] = add(database, "finish")
        wait_for(lambda: row_of(database, run_id).status == "finished")
