"""Forecasts: time from earlier measurements, and warnings about what does not fit."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backend import store
from backend.jobs.forecast import Room, forecast, warnings
from backend.jobs.slots import Places, find_slots
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.presets import expand_grid, resolve_config
from sae_engine.schema.config import RunConfig
from sae_engine.schema.machine import Forecast

CONFIG = resolve_config("tiny", {})
GIB = 2**30


def measured(
    database: Database,
    name: str,
    *,
    k: int = 16,
    layer: int = 2,
    data: dict[str, object] | None = None,
    status: str,
    seconds: int,
) -> None:
    """Add a run that trained 400,000 tokens in `seconds`, finally at 1,000 tokens/s."""
    overrides = {"name": name, "sae": {"k": k}, "model": {"layer": layer}, "data": data or {}}
    start = datetime.now(UTC)
    with database.writing() as session:
        row = store.add_run(session, config=resolve_config("tiny", overrides))
        row.device, row.status, row.tokens, row.tokens_per_second = "cpu", status, 400_000, 1_000.0
        row.started_at, row.ended_at = start, start + timedelta(seconds=seconds)


def seconds_of(database: Database, config: RunConfig, folder: Path) -> tuple[float | None, str]:
    with database.reading() as session:
        places = Places(find_slots(Settings()), [])
        found = forecast(session, [config], places, folder)
    assert (found.slot_device, found.device) == ("cpu", "cpu")
    return found.seconds, found.seconds_from or ""


def test_the_time_is_based_on_the_last_run_of_the_same_size(
    database: Database, tmp_path: Path
) -> None:
    assert seconds_of(database, CONFIG, tmp_path) == (None, "")
    measured(database, "other size", k=8, status="finished", seconds=400)
    total = 599_552  # whole batches of 512 in 600,000
    seconds, words = seconds_of(database, CONFIG, tmp_path)
    assert seconds == pytest.approx(total / 1_000)
    assert words == "1,000 tokens/s, measured by 'other size' on cpu with a different SAE"
    measured(database, "same size", status="finished", seconds=100)
    measured(database, "other layer", layer=1, status="finished", seconds=10)
    measured(database, "newer, other size", k=8, status="finished", seconds=10)
    seconds, words = seconds_of(database, CONFIG, tmp_path)
    assert seconds == pytest.approx(total / 4_000)
    assert words == "4,000 tokens/s, measured by 'same size' on cpu"
    measured(database, "stopped", status="stopped", seconds=10)  # how long it trained is not known
    seconds, words = seconds_of(database, CONFIG, tmp_path)
    assert seconds == pytest.approx(total / 1_000)
    assert words == "1,000 tokens/s, measured by 'stopped' on cpu"


def test_a_run_on_some_roles_is_timed_by_runs_on_the_same_conversations(
    database: Database, tmp_path: Path
) -> None:
    def chats(dataset: str, *roles: str) -> dict[str, object]:
        return {"dataset": dataset, "messages_column": "messages", "train_roles": roles or None}

    wanted = resolve_config("tiny", {"data": chats("support", "assistant")})
    measured(database, "every token", data=chats("support"), status="finished", seconds=100)
    measured(database, "user", data=chats("support", "user"), status="finished", seconds=100)
    measured(database, "other", data=chats("forum", "assistant"), status="finished", seconds=100)
    assert seconds_of(database, wanted, tmp_path) == (None, "")
    measured(database, "same", data=chats("support", "assistant"), status="finished", seconds=800)
    assert seconds_of(database, wanted, tmp_path)[1] == "500 tokens/s, measured by 'same' on cpu"


def forecast_of(database: Database, grid: dict[str, list[object]], folder: Path) -> Forecast:
    configs = [config for _, config in expand_grid("tiny", {}, grid)]
    with database.reading() as session:
        places = Places(find_slots(Settings()), [])
        return forecast(session, configs, places, folder)


def test_runs_of_a_sweep_share_the_cost_of_a_pass(database: Database, tmp_path: Path) -> None:
    measured(database, "alone", status="finished", seconds=400)
    with database.writing() as session:
        [row] = store.list_runs(session).rows
        row.metrics = json.dumps({"sae_share": 0.25})
    one = forecast_of(database, {}, tmp_path)
    assert (one.num_runs, one.num_passes, one.seconds_from) == (
        1,
        1,
        "1,000 tokens/s, measured by 'alone' on cpu",
    )
    together = forecast_of(database, {"sae.k": [16, 32, 8]}, tmp_path)
    assert (together.num_runs, together.num_passes) == (3, 1)
    assert together.seconds == pytest.approx((one.seconds or 0) * (1 + 2 * 0.25))
    assert together.disk_bytes > 2 * one.disk_bytes
    assert one.memory_bytes < together.memory_bytes < 3 * one.memory_bytes
    apart = forecast_of(database, {"data.ctx_len": [256, 128]}, tmp_path)
    assert (apart.num_runs, apart.num_passes) == (2, 2)
    assert apart.seconds == pytest.approx(2 * (one.seconds or 0))
    assert apart.memory_bytes == one.memory_bytes


@pytest.mark.parametrize(
    ("memory", "disk", "words"),
    [
        (1, 1, []),
        (3, 1, ["This needs 3.0 GiB of memory, but this machine has only 2.0 GiB free now."]),
        (9, 1, ["This needs 9.0 GiB of memory, but this machine has 8.0; choose a smaller model, "
                "fewer latents or a smaller batch."]),
        (1, 6, ["This needs up to 6.0 GiB of disk space, but only 5.0 GiB are free; save or index "
                "less often, or free some space."]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_reported(memory: int, disk: int, words: list[str]) -> None:
    room = Room("cpu", memory_free=2 * GIB, memory_total=8 * GIB, disk_free=5 * GIB)
    assert warnings(memory * GIB, disk * GIB, room) == words
