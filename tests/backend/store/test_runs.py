"""Runs and their states are stored; of two competing transactions only one succeeds."""

from __future__ import annotations

import math
import re
import threading
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from backend import store
from backend.errors import ConflictError
from backend.http.curves import metrics_series
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.errors import UserError
from sae_engine.presets import resolve_config
from sae_engine.schema.records import MetricsRecord, SnapshotRecord, StopRequest
from sae_engine.schema.runs import RunPatch, RunStatus
from tests.backend.conftest import claim_next

pytestmark = pytest.mark.both_databases

STATUSES: list[RunStatus] = [
    "queued",
    "running",
    "stopping",
    "finished",
    "stopped",
    "failed",
    "interrupted",
]


def add(session: Session, name: str = "a run", status: RunStatus = "queued") -> RunRow:
    config = resolve_config("quick-test", {"name": name})
    row = store.add_run(session, config=config, status=status)
    return row


def record(step: int, **values: float) -> MetricsRecord:
    return MetricsRecord(step=step, tokens=step * 10, time=float(step), values=values)


def test_non_finite_measurements_survive_the_database(database: Database) -> None:
    with database.writing() as session:
        run_id = add(session).id
        values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 5e-324, "e": 0.1}
        store.add_metrics(session, run_id, [record(1, **values)])
    with database.reading() as session:
        series = metrics_series(store.metrics(session, run_id)).series
    assert series == {
        "a": ["NaN"],
        "b": ["Infinity"],
        "c": ["-Infinity"],
        "d": [5e-324],
        "e": [0.1],
    }


def test_repeated_measurements_overwrite_only_the_same_metrics(database: Database) -> None:
    with database.writing() as session:
        run_id = add(session).id
        store.add_metrics(session, run_id, [record(5, fvu=0.5, l0=4.0), record(5, eval_fvu=0.6)])
        store.add_metrics(session, run_id, [record(5, fvu=0.4), record(6, fvu=0.3)])
        series = metrics_series(store.metrics(session, run_id))
    assert series.step == [5, 6]
    assert series.series == {"fvu": [0.4, 0.3], "l0": [4.0, None], "eval_fvu": [0.6, None]}


def test_forget_after_keeps_the_step_itself_and_earlier_ones(database: Database) -> None:
    with database.writing() as session:
        run_id = add(session).id
        store.add_metrics(session, run_id, [record(step, fvu=1.0) for step in (1, 5, 9)])
        for step in (1, 5, 9):
            snapshot = SnapshotRecord(step=step, tokens=1, index_tokens=1, seconds=0.1, final=False)
            store.add_snapshot(session, run_id, snapshot)
        store.forget_after(session, run_id, 5)
        assert store.metrics(session, run_id).step.tolist() == [1, 5]
        assert [row.step for row in store.snapshots(session, run_id)] == [1, 5]


def test_each_queued_run_is_claimed_once_by_many_claimants(database: Database) -> None:
    with database.writing() as session:
        expected = [add(session, f"run {number}").id for number in range(12)]
    claimed: list[str] = []

    def claim() -> None:
        while True:
            with database.writing() as session:
                rows = claim_next(session)
            if not rows:
                return
            claimed.extend(row.id for row in rows)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(expected)


def test_the_oldest_run_is_claimed_first_and_a_resumed_one_queues_at_the_end(
    database: Database,
) -> None:
    with database.writing() as session:
        first, second = add(session, "first").id, add(session, "second").id
        store.request_stop(session, first, force=False)
        store.requeue(session, first)
    claimed: list[str] = []
    for _ in range(2):
        with database.writing() as session:
            [row] = claim_next(session)
            assert row.status == "running"
            assert row.device == "cpu"
            claimed.append(row.id)
    assert claimed == [second, first]


def test_new_runs_of_a_sweep_are_claimed_together_in_order(
    database: Database,
) -> None:
    config = resolve_config("quick-test", {"name": "member"})
    inspected = resolve_config("quick-test", {"name": "m", "sae": {"pretrained": "/an/sae"}})
    with database.writing() as session:
        made = [
            store.add_run(session, config=each, group_id="g").id
            for each in (config, inspected, config, inspected, config)
        ]
        store.request_stop(session, made[2], force=False)
        store.requeue(session, made[2])
    claimed: list[list[str]] = []
    for _ in range(4):
        with database.writing() as session:
            claimed.append([row.id for row in claim_next(session)])
    assert claimed == [[made[0], made[4]], [made[1]], [made[3]], [made[2]]]


@pytest.mark.parametrize("status", STATUSES)
def test_a_run_can_be_stopped_until_it_has_ended(database: Database, status: RunStatus) -> None:
    after = {"queued": "stopped", "running": "stopping", "stopping": "stopping"}
    with database.writing() as session:
        run_id = add(session, status=status).id
        if status in after:
            stopped = store.request_stop(session, run_id, force=False)
            assert (stopped.status, stopped.queue_rank) == (after[status], None)
        else:
            with pytest.raises(ConflictError, match="already ended"):
                store.request_stop(session, run_id, force=False)


@pytest.mark.both_databases
def test_a_run_names_the_sae_that_it_imported_when_it_is_deleted(database: Database) -> None:
    saes = ["/an/sae", "/an/sae", "/another's", None]
    with database.writing() as session:
        for path in saes:
            config = resolve_config("quick-test", {"name": "run", "sae": {"pretrained": path}})
            store.add_run(session, config=config)
        runs = [row.id for row in store.queued_runs(session)]
        for run_id, path in zip(runs, saes, strict=True):
            others = [other for other in saes[saes.index(path) + 1 :] if other is not None]
            assert set(store.imported_saes(session)) >= set(others)
            assert store.delete_run(session, run_id) == path
        assert not store.imported_saes(session)


@pytest.mark.parametrize("status", STATUSES)
def test_only_runs_that_ended_early_are_requeued(database: Database, status: RunStatus) -> None:
    with database.writing() as session:
        run_id = add(session, status=status).id
        if status in ("stopped", "failed", "interrupted"):
            assert store.requeue(session, run_id).status == "queued"
        else:
            with pytest.raises(ConflictError):
                store.requeue(session, run_id)


@pytest.mark.parametrize("status", STATUSES)
def test_only_an_active_run_can_end(database: Database, status: RunStatus) -> None:
    with database.writing() as session:
        run_id = add(session, status=status).id
    with database.writing() as session:
        ended = store.end_run(session, run_id, "finished")
    with database.reading() as session:
        now = store.get_run(session, run_id).status
    active = status in store.ACTIVE
    assert ended == active
    assert now == ("finished" if active else status)


def test_a_job_reads_stop_and_force(database: Database) -> None:
    with database.writing() as session:
        row = add(session, status="running")
        row.job, run_id = "mine", row.id
    for force, expected in [(None, "none"), (False, "stop"), (True, "force"), (False, "force")]:
        with database.writing() as session:
            if force is not None:
                store.request_stop(session, run_id, force=force)
        with database.reading() as session:
            requests = store.stop_requests(session, [run_id], "mine")
            others = store.stop_requests(session, [run_id], "another")
        assert requests == {run_id: StopRequest(expected)}
        assert others == {run_id: StopRequest.FORCE}


def test_a_job_whose_run_was_deleted_is_forced_to_stop(database: Database) -> None:
    with database.reading() as session:
        assert store.stop_requests(session, ["gone"], "mine") == {"gone": StopRequest.FORCE}


def test_deleting_a_run_deletes_everything_stored_about_it(database: Database) -> None:
    with database.writing() as session:
        row = add(session)
        store.patch_run(session, row.id, RunPatch(tags=["a"]))
        store.add_metrics(session, row.id, [record(1, fvu=1.0)])
        store.add_notice(session, row.id, level="info", message="hello")
    with database.writing() as session:
        store.delete_run(session, row.id)
    with database.reading() as session:
        assert len(store.metrics(session, row.id)) == 0
        assert not store.notices(session, row.id)
        assert not store.count_tags(session)


def test_a_run_is_found_by_id_prefix_or_name_unless_several_match(database: Database) -> None:
    with database.writing() as session:
        row = add(session, "only")
        add(session, "twice")
        add(session, "twice")
    with database.reading() as session:
        for text in (row.id, row.id[:7], "only"):
            assert store.find_run(session, text).id == row.id
        with pytest.raises(UserError, match="matches 2 runs"):
            store.find_run(session, "twice")
        with pytest.raises(UserError, match="no run 'nobody'"):
            store.find_run(session, "nobody")


def test_a_transaction_that_raises_stores_nothing(database: Database) -> None:
    def fail() -> None:
        with database.writing() as session:
            add(session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.reading() as session:
        assert not store.list_runs(session).rows


def test_two_writers_wait_for_each_other(database: Database) -> None:
    """Both read before they write; with deferred transactions one of them would fail."""
    with database.writing() as session:
        run_id = add(session).id

    def append(text: str) -> None:
        for _ in range(20):
            with database.writing() as session:
                row = store.get_run(session, run_id)
                row.notes = row.notes + text

    threads = [threading.Thread(target=append, args=(text,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        notes = store.get_run(session, run_id).notes
    assert sorted(notes) == sorted("ab" * 20)


def test_any_log_content_can_be_stored(database: Database) -> None:
    with database.writing() as session:
        run_id = add(session, status="running").id
        assert store.fail_run(
            session, run_id, "failed", kind="SomeError", message="a\0b", log_tail="\0\x1b[1m é\n"
        )
    with database.reading() as session:
        row = store.get_run(session, run_id)
    assert (row.error_message, row.error_log_tail) == ("a␀b", "␀\x1b[1m é\n")


def test_token_counts_may_exceed_32_bits(database: Database) -> None:
    many = 10**12
    with database.writing() as session:
        run_id = add(session, status="running").id
        measured = MetricsRecord(step=1, tokens=many, time=1.0, values={"fvu": 0.5})
        store.add_metrics(session, run_id, [measured])
        store.update_run(session, run_id, tokens=many, total_tokens=many)
    with database.reading() as session:
        row = store.get_run(session, run_id)
        assert (row.tokens, row.total_tokens) == (many, many)
        assert metrics_series(store.metrics(session, run_id)).tokens == [many]


def test_a_reader_sees_one_consistent_state_while_others_write(database: Database) -> None:
    with database.writing() as session:
        run_id = add(session).id
    with database.reading() as reader:
        before = store.get_run(reader, run_id).notes
        with database.writing() as session:
            store.patch_run(session, run_id, RunPatch(notes="changed"))
            add(session, "another")
        reader.expire_all()
        assert store.get_run(reader, run_id).notes == before
        assert store.list_runs(reader).total == 1
    with database.reading() as reader:
        assert store.get_run(reader, run_id).notes == "changed"


def test_an_unreachable_database_is_reported_in_one_sentence(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}", f"postgresql://me:secret@/runs?host={tmp_path}"):
        database = Database(url)
        with pytest.raises(UserError, match=re.escape(str(tmp_path))) as raised:
            database.prepare()
        assert "secret" not in str(raised.value)
        database.close()
