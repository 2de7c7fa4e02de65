"""GPUs are listed with what their driver reports; what it refuses is null and ends nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backend.jobs import devices
from backend.jobs.devices import gpus, visible_gpus
from backend.jobs.forecast import room_on
from backend.jobs.machine import memory
from backend.jobs.slots import find_slots
from backend.settings import Settings


class Driver:
    """NVIDIA's management library with two GPUs; it raises for the queries in `refused`."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *refused: str) -> None:
        self._refused = refused
        self._uuids = ["GPU-1", "GPU-2"]

    def __getattr__(self, query: str) -> Any:
        name = query.removeprefix("nvmlDeviceGet")
        if name in self._refused:
            return self._refuse
        return {
            "Count": lambda: 2,
            "HandleByIndex": lambda index: index if index < 2 else self._refuse(),
            "HandleByUUID": self._by_uuid,
            "Name": lambda handle: f"kind {handle}",
            "MemoryInfo": lambda handle: SimpleNamespace(used=10 + handle, total=100),
            "UtilizationRates": lambda _: SimpleNamespace(gpu=50),
            "Temperature": lambda _, __: 40,
        }[name]

    def _by_uuid(self, uuid: str) -> int:
        uuid.encode("ascii")
        return self._uuids.index(uuid) if uuid in self._uuids else self._refuse()

    def _refuse(self, *_: object) -> Any:
        raise self.NVMLError("Not Supported")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(driver: Driver, visible: str | None = None) -> None:
        monkeypatch.setattr(devices, "_nvml", lambda: driver)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return use


def test_visible_gpus_are_numbered_in_their_order(use: Any) -> None:
    use(Driver(), "GPU-2,0")
    second, first = gpus()
    assert (second.id, second.name, second.memory_used_bytes) == ("cuda:0", "kind 1", 11)
    assert (first.id, first.name, first.memory_used_bytes) == ("cuda:1", "kind 0", 10)
    assert (first.utilization, first.temperature_celsius) == (0.5, 40.0)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("MemoryInfo", "memory_total_bytes"),
        ("MemoryInfo", "memory_used_bytes"),
        ("UtilizationRates", "utilization"),
        ("Temperature", "temperature_celsius"),
    ],
)
def test_what_a_gpu_does_not_report_is_null(use: Any, query: str, field: str) -> None:
    use(Driver())
    full = [gpu.model_dump() for gpu in gpus()]
    use(Driver(query))
    for before, gpu in zip(full, gpus(), strict=True):
        kept = {k: v for k, v in gpu.model_dump().items() if v is not None}
        assert getattr(gpu, field) is None
        assert kept.items() <= before.items()


@pytest.mark.parametrize("name", ["7", "GPU-unknown", "MIG-1/2/3", "GPÜ"])
def test_a_gpu_that_the_driver_does_not_know_has_only_its_name(
    use: Any, settings: Settings, name: str
) -> None:
    use(Driver(), f"0,{name}")
    known, unknown = gpus()
    assert known.name == "kind 0"
    assert unknown.model_dump(exclude={"id", "name"}) == {
        "utilization": None, "memory_used_bytes": None, "memory_total_bytes": None,
        "temperature_celsius": None,
    }  # fmt: skip
    assert [slot.id for slot in find_slots(settings)] == ["cuda:0", "cuda:1", "cpu"]


def test_a_driver_that_counts_no_gpus_any_more_leaves_the_cpu(use: Any, settings: Settings) -> None:
    use(Driver("Count"))
    assert visible_gpus() == []
    assert [slot.id for slot in find_slots(settings)] == ["cpu"]


def test_a_gpu_without_memory_of_its_own_has_the_machines(
    use: Any, settings: Settings, tmp_path: Path
) -> None:
    use(Driver())
    [slot, *_] = find_slots(settings)
    assert room_on(slot, tmp_path)[1:3] == (90, 100)
    use(Driver("MemoryInfo"))
    assert room_on(slot, tmp_path).memory_total == memory().total
