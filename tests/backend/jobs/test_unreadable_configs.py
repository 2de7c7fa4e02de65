"""A stored configuration that this version refuses hides no other run and blocks no queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from backend import store
from backend.store.configs import UNREADABLE, UnreadableConfigError, readable_config
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.presets import resolve_config
from sae_engine.schema.config import RunConfig
from sae_engine.schema.runs import Run, RunPage, RunStatus
from tests.backend.conftest import create, read, wait_for_status

CONFIG = resolve_config("quick-test", {"name": "old", "sae": {"k": 7}, "train": {"lr": 0.5}})


def stored(**sections: object) -> dict[str, Any]:
    """A valid stored configuration with some sections updated or replaced."""
    tree = CONFIG.model_dump(mode="json")
    for name, value in sections.items():
        tree[name] = {**tree[name], **value} if isinstance(value, Mapping) else value
    return tree


UNKNOWN_FIELD = stored(sae={"topk_fraction": 0.1})
INVALID_VALUE = stored(train={"lr": -1})
INVALID = {
    "unknown field": UNKNOWN_FIELD,
    "unknown section": stored() | {"optimizer": {"lr": 1}},
    "invalid value": INVALID_VALUE,
    "invalid section": stored(model=None),
    "contradiction": stored(sae={"d_sae": 4, "k": 7}),
    "no fields": [],
}


def add(database: Database, config: object, status: RunStatus = "queued") -> str:
    with database.writing() as session:
        run_id = store.add_run(session, config=CONFIG, status="running").id
        change = update(RunRow).where(RunRow.id == run_id)
        queued = {"queue_rank": 1, "queued_at": RunRow.created_at}
        session.execute(change.values(config=config, status=status, **queued))
    return run_id


@pytest.mark.parametrize("config", INVALID.values(), ids=INVALID)
def test_an_unreadable_run_is_listed_with_defaults_and_an_error(
    client: TestClient, database: Database, config: object
) -> None:
    good = create(client, "finish")
    bad = add(database, config, "finished")
    page = RunPage.model_validate_json(client.get("/api/runs").content)
    assert {run.id for run in page.items} == {good.id, bad}
    run = read(client, bad)
    assert run == next(each for each in page.items if each.id == bad)
    assert (run.status, run.resumable) == ("finished", False)
    assert run.error is not None
    assert run.error.type == UNREADABLE
    assert run.error.message.startswith("This version cannot read the settings of the run 'old' (")
    with database.reading() as session, pytest.raises(UnreadableConfigError, match="cannot read"):
        store.config_of(store.get_run(session, bad))


def test_a_run_stored_before_a_field_existed_keeps_what_it_was_trained_with(
    database: Database,
) -> None:
    tree = resolve_config("tiny", {}).model_dump(mode="json")
    del tree["data"]["shuffle_tokens"], tree["data"]["max_norm_multiple"]
    old = add(database, tree, "interrupted")
    unreadable = add(database, tree | {"train": {"lr": -1}}, "finished")
    with database.reading() as session:
        for run_id in (old, unreadable):
            data = readable_config(store.get_run(session, run_id)).config.data
            assert (data.shuffle_tokens, data.max_norm_multiple) == (32_768, None)


def test_valid_fields_are_shown_as_they_are(client: TestClient, database: Database) -> None:
    unknown = read(client, add(database, UNKNOWN_FIELD, "finished"))
    assert unknown.config == CONFIG
    assert "sae.topk_fraction: Extra inputs" in _message(unknown)
    invalid = read(client, add(database, INVALID_VALUE, "finished"))
    default = RunConfig().train.lr
    expected = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"lr": default})})
    assert invalid.config == expected
    assert "train.lr: It must be above 0" in _message(invalid)


def test_the_reason_for_an_earlier_failure_is_kept(client: TestClient, database: Database) -> None:
    run_id = add(database, UNKNOWN_FIELD, "running")
    with database.writing() as session:
        store.fail_run(
            session, run_id, "failed", kind="SomeError", message="It broke.", log_tail="the log"
        )
    run = read(client, run_id)
    assert run.error is not None
    assert run.error.message.endswith("It broke.")
    assert run.error.log_tail == "the log"


@pytest.mark.parametrize("config", INVALID.values(), ids=INVALID)
def test_an_unreadable_queued_run_fails_and_later_ones_are_started(
    client: TestClient, database: Database, config: object
) -> None:
    bad = add(database, config)
    good = create(client, "finish")
    wait_for_status(client, good.id, "finished")
    assert "cannot read the settings" in _message(wait_for_status(client, bad, "failed"))
    with database.reading() as session:
        assert store.get_run(session, bad).error_type == UNREADABLE
    assert client.get("/api/system").is_success


def test_an_unreadable_run_is_ignored_when_speeds_are_compared(database: Database) -> None:
    for config in (CONFIG.model_dump(mode="json"), UNKNOWN_FIELD):
        run_id = add(database, config, "running")
        with database.writing() as session:
            name = "old" if config is UNKNOWN_FIELD else "measured"
            store.update_run(session, run_id, device="cpu", tokens_per_second=1.0, name=name)
    with database.reading() as session:
        found = store.measured_speed(session, "cpu", CONFIG)
    assert found is not None
    assert found.run_name == "measured"


def test_an_unreadable_run_can_be_compared(client: TestClient, database: Database) -> None:
    bad = add(database, UNKNOWN_FIELD, "finished")
    good = add(database, CONFIG.model_dump(mode="json"), "finished")
    answer = client.get(f"/api/compare?runs={bad},{good}")
    assert answer.status_code == 200, answer.text


def _message(run: Run) -> str:
    assert run.error is not None
    return run.error.message
