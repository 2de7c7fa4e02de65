"""Slots: found, chosen for runs, occupied, and made the only device that a process sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.jobs.slots import ALL_GPUS, Places, Slot, environment_of, find_slots
from backend.settings import Settings
from backend.store.database import Database
from backend.store.models import RunRow
from sae_engine.presets import resolve_config
from tests.backend.conftest import URL, create, read, wait_for, wait_for_status
from tests.backend.fake_engine import fake_job

GPUS = ("cuda:0", "cuda:1")


def places(
    devices: Sequence[str], active: Sequence[RunRow] = (), held: Sequence[str] = ()
) -> Places:
    return Places(find_slots(Settings(devices=list(devices))), active, held)


def row(name: str = "run", slot: str | None = None, **model: object) -> RunRow:
    config = resolve_config("tiny", {"name": name, "model": model})
    device = slot.partition("#")[0] if slot else None
    return RunRow(name=name, config=config.model_dump(mode="json"), slot=slot, device=device)


def place(found: Slot | None) -> str | None:
    return found and found.id


def test_without_a_gpu_or_setting_there_is_one_cpu_slot() -> None:
    [slot] = find_slots(Settings())
    assert (slot.id, slot.device) == ("cpu", "cpu")
    assert slot.environment["CUDA_VISIBLE_DEVICES"] == ""


def test_a_device_named_twice_in_the_setting_has_two_slots() -> None:
    slots = find_slots(Settings(devices=["cuda:1", "cpu", "cpu"]))
    assert [(slot.id, slot.device) for slot in slots] == [
        ("cuda:1", "cuda:1"),
        ("cpu", "cpu"),
        ("cpu#2", "cpu"),
    ]
    assert slots[0].environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert int(slots[1].environment["OMP_NUM_THREADS"]) >= 1


@pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:x", "cpu:1"])
def test_a_setting_with_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ValidationError, match="use cpu or cuda:0"):
        Settings(devices=[device])


@pytest.mark.parametrize(
    ("wanted", "usable"),
    [
        ("auto", ["cuda:0", "cuda:1"]),
        ("cuda", ["cuda:0", "cuda:1"]),
        ("cuda:1", ["cuda:1"]),
        ("cpu", ["cpu"]),
        ("cuda:2", []),
    ],
)
def test_the_requested_device_decides_the_usable_slots(wanted: str, usable: list[str]) -> None:
    found = places([*GPUS, "cpu"])
    assert [slot.id for slot in found.usable(wanted)] == usable


def test_auto_means_the_cpu_where_there_is_no_gpu() -> None:
    assert [slot.id for slot in places(["cpu"]).usable("auto")] == ["cpu"]


def test_a_run_gets_the_first_free_slot_and_overtakes_one_that_must_wait() -> None:
    found = places(GPUS, [row("first", "cuda:0")])
    assert place(found.place_for(row())) == "cuda:1"
    chosen = found.next_of([row("picky", device="cuda:0"), row("easy")])
    assert chosen is not None
    assert (chosen[0].name, chosen[1].id) == ("easy", "cuda:1")
    assert places(GPUS, [row("a", "cuda:0"), row("b", "cuda:1")]).next_of([row()]) is None


def test_a_slot_is_occupied_until_its_process_has_exited() -> None:
    found = places(GPUS, [], held=["cuda:0"])
    assert place(found.place_for(row())) == "cuda:1"
    words = found.why_waiting(row(device="cuda:0"))
    assert words == "Waiting for cuda:0; the previous run is finishing."


@pytest.mark.parametrize("model", [{"device_map": "auto"}, {"readers": 2}])
def test_a_run_on_all_gpus_waits_for_all_and_keeps_later_runs_off_them(model: dict) -> None:
    spread = row("spread", **model)
    half = places([*GPUS, "cpu"], [row("a", "cuda:0")])
    assert half.place_for(spread) is None
    assert half.next_of([spread, row("later")]) is None
    on_cpu = half.next_of([spread, row("later", device="cpu")])
    assert on_cpu is not None
    assert on_cpu[1].id == "cpu"
    whole = places([*GPUS, "cpu"]).place_for(spread)
    assert whole is not None
    assert (whole.id, whole.environment["CUDA_VISIBLE_DEVICES"]) == (ALL_GPUS, "0,1")
    assert [slot.id for slot in places([*GPUS, "cpu"], [row("s", ALL_GPUS)]).free()] == ["cpu"]


def test_readers_on_the_cpu_take_one_slot() -> None:
    on_cpu = places([*GPUS, "cpu"]).place_for(row("a", readers=2, device="cpu"))
    assert on_cpu is not None
    assert on_cpu.id == "cpu"
    assert not places([*GPUS, "cpu"]).spreads(row("a", readers=1))


def test_a_run_in_a_terminal_occupies_a_slot_of_its_device() -> None:
    foreground = row("terminal")
    assert places(["cpu"], [foreground]).free() == []
    foreground.device = "cpu"
    assert [slot.id for slot in places(["cuda:0", "cpu"], [foreground]).free()] == ["cuda:0"]


def test_the_reason_for_waiting_is_one_sentence() -> None:
    taken = places(["cpu"], [row(name, "cpu") for name in ("a", "b", "c", "d")])
    words = taken.why_waiting(row())
    assert words == "Waiting for the CPU, in use by 'a', 'b', 'c' and 1 more."
    words = taken.why_waiting(row(device="cuda:3"))
    assert words == "Waiting for cuda:3, but this server trains on cpu."
    assert places(["cpu"]).why_waiting(row()) == "About to start."


def test_a_number_of_threads_set_by_the_user_is_kept() -> None:
    slot = find_slots(Settings(devices=["cpu", "cpu"]))[0]
    environment = environment_of(slot, {"OMP_NUM_THREADS": "7", "CUDA_VISIBLE_DEVICES": "0"})
    assert environment["OMP_NUM_THREADS"] == "7"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


@contextmanager
def server(settings: Settings, devices: list[str]) -> Iterator[TestClient]:
    settings = settings.model_copy(update={"devices": devices})
    with TestClient(create_app(settings, command=fake_job), URL) as client:
        yield client


def log_of(settings: Settings, run_id: str) -> str:
    return settings.run_folder(run_id).log.read_text()


def test_each_process_sees_only_its_own_device(settings: Settings, database: Database) -> None:
    with server(settings, list(GPUS)) as client:
        runs = [create(client, "wait") for _ in range(3)]
        for run in runs[:2]:
            wait_for_status(client, run.id, "running")
        devices = [read(client, run.id).device for run in runs]
        assert devices == ["cuda:0", "cuda:1", None]
        for number, run in enumerate(runs[:2]):
            wait_for(lambda run=run: "fake engine" in log_of(settings, run.id))
            assert f"CUDA_VISIBLE_DEVICES={number}, model.device=cuda" in log_of(settings, run.id)
        slots = client.get("/api/system").json()["slots"]
        assert [(slot["id"], slot["runs"]) for slot in slots] == [
            ("cuda:0", [runs[0].id]),
            ("cuda:1", [runs[1].id]),
        ]
        waiting = read(client, runs[2].id)
        assert (waiting.status, waiting.queue_position) == ("queued", 1)
        assert waiting.waiting_for == "Waiting for cuda:0 and cuda:1, in use by 'wait'."
        client.post(f"/api/runs/{runs[1].id}/stop")
        wait_for_status(client, runs[2].id, "running")
        assert read(client, runs[2].id).device == "cuda:1"
        for run in (runs[0], runs[2]):
            client.post(f"/api/runs/{run.id}/stop")
            wait_for_status(client, run.id, "stopped")
        with database.reading() as session:
            assert store.get_run(session, runs[2].id).device == "cuda:1"


def test_an_unavailable_device_is_refused(
    settings: Settings,
) -> None:
    with server(settings, ["cpu", "cuda:4"]) as client:
        body = {"preset": "tiny", "config": {"model": {"device": "cuda:1"}}}
        for path, more in (
            ("runs", {}),
            ("config/estimate", {}),
            ("sweeps", {"grid": {"sae.k": [8]}}),
        ):
            answer = client.post(f"/api/{path}", json=body | more)
            assert answer.status_code == 422
            words = "'cuda:1' is not available; this server trains on cpu, cuda:4."
            assert words in answer.json()["detail"]


def test_the_queue_is_reordered_and_started_in_that_order(
    settings: Settings, tmp_path: Path
) -> None:
    with server(settings, ["cpu"]) as client:
        blocking = create(client, "wait")
        wait_for_status(client, blocking.id, "running")
        ids = [create(client, f"finish {name}").id for name in "abcd"]

        def order() -> list[str]:
            waiting = [read(client, run_id) for run_id in ids]
            placed = sorted((run.queue_position or 0, run.name) for run in waiting)
            assert [position for position, _ in placed] == [1, 2, 3, 4]
            return [name.split()[1] for _, name in placed]

        assert order() == ["a", "b", "c", "d"]
        moved = client.patch(f"/api/runs/{ids[3]}", json={"queue_position": 1})
        assert moved.json()["queue_position"] == 1
        assert order() == ["d", "a", "b", "c"]
        client.patch(f"/api/runs/{ids[0]}", json={"queue_position": 10**24})
        assert order() == ["d", "b", "c", "a"]
        answer = client.patch(f"/api/runs/{blocking.id}", json={"queue_position": 1})
        assert answer.status_code == 409
        assert "only a queued run has a place in the queue" in answer.json()["detail"]
        assert client.patch(f"/api/runs/{ids[0]}", json={"queue_position": 0}).status_code == 422
        client.post(f"/api/runs/{blocking.id}/stop")
        for run_id in ids:
            wait_for_status(client, run_id, "finished")
        ended = [read(client, run_id) for run_id in ids]
        started = sorted((str(run.started_at), run.name) for run in ended)
        assert [name.split()[1] for _, name in started] == ["d", "b", "c", "a"]


def test_a_run_without_a_checkpoint_is_retried_from_its_beginning(settings: Settings) -> None:
    with server(settings, ["cpu"]) as client:
        run = create(client, "refuse")
        assert wait_for_status(client, run.id, "failed").error is not None
        answer = client.post(f"/api/runs/{run.id}/retry")
        assert (answer.status_code, answer.json()["error"]) == (202, None)
        wait_for_status(client, run.id, "failed")
        assert log_of(settings, run.id).count("fake engine: refuse, resume=False") == 2
        finished = create(client, "finish")
        wait_for_status(client, finished.id, "finished")
        assert client.post(f"/api/runs/{finished.id}/retry").status_code == 409


def test_a_clone_names_the_run_it_came_from(client: TestClient) -> None:
    first = create(client, "finish")
    clone = create(client, "finish again", cloned_from=first.id)
    assert (clone.cloned_from, first.cloned_from) == (first.id, None)
