"""Runs whose machine was lost are requeued automatically, a limited number of times."""

from __future__ import annotations

import json
import os

import pytest
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from backend import store
from backend.jobs import losses
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.presets import resolve_config
from sae_engine.training.position import Position, saved_position
from tests.backend.conftest import create, read, wait_for_status


@pytest.mark.both_databases
def test_a_run_is_queued_again_three_times_for_each_checkpoint(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = 0
    monkeypatch.setattr(losses, "saved_position", lambda _: Position(step, 0))
    with database.writing() as session:
        blocking = store.add_run(session, config=resolve_config("quick-test", {"name": "first"})).id
        run_id = store.add_run(session, config=resolve_config("quick-test", {"name": "lost"})).id

    def status_after_loss() -> str:
        with database.writing() as session:
            queued = store.get_run(session, run_id)
            store.claim(session, queued, [], slot="a/cpu", device="cpu")
            row = store.get_run(session, run_id)
            losses.queue_again_after_loss(session, row, settings.run_folder(run_id), "a")
        with database.reading() as session:
            queue = [row.id for row in store.queued_runs(session)]
            status = store.get_run(session, run_id).status
            assert queue == ([run_id, blocking] if status == "queued" else [blocking])
            return status

    assert [status_after_loss() for _ in range(3)] == ["queued"] * 3
    step = 8
    assert [status_after_loss() for _ in range(4)] == [*["queued"] * 3, "interrupted"]
    with database.reading() as session:
        message = store.get_run(session, run_id).error_message or ""
    assert message.endswith("The run was queued again 3 times without a new checkpoint.")


def test_a_run_that_was_asked_to_stop_is_not_queued_again(
    settings: Settings, database: Database, client: TestClient
) -> None:
    run = create(client, "wait")
    wait_for_status(client, run.id, "running")
    with database.writing() as session:
        store.request_stop(session, run.id, force=False)
        row = store.get_run(session, run.id)
        losses.queue_again_after_loss(session, row, settings.run_folder(run.id), "a")
    assert read(client, run.id).status == "interrupted"


def test_a_missing_or_damaged_checkpoint_does_not_count(settings: Settings) -> None:
    folder = settings.run_folder("r")
    assert saved_position(folder) == (0, 0)
    folder.checkpoints.mkdir(parents=True)
    folder.checkpoint.write_bytes(os.urandom(100))
    assert saved_position(folder) == (0, 0)
    header = {"state": json.dumps({"step": 7, "tokens": 70})}
    save_file({}, folder.previous_checkpoint, metadata=header)
    assert saved_position(folder) == (7, 70)
    header = {"state": json.dumps({"step": 9})}
    save_file({}, folder.checkpoint, metadata=header)
    assert saved_position(folder) == (7, 70)
