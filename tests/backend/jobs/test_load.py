"""The load of a run's process becomes metrics, at most once a second."""

from __future__ import annotations

import os

import psutil
import pytest

from backend.jobs import load
from backend.jobs.load import ProcessLoad
from sae_engine.schema.machine import Device
from sae_engine.schema.records import METRICS

GPUS = [
    Device(
        id=f"cuda:{number}",
        name="a GPU",
        utilization=share,
        memory_used_bytes=used,
        memory_total_bytes=used and 8 * 2**30,
        temperature_celsius=None,
    )
    for number, (share, used) in enumerate([(0.25, 2**30), (None, 2 * 2**30), (0.5, None)])
]


def reader(seconds: list[float]) -> ProcessLoad:
    return ProcessLoad(now=lambda: seconds[0])


def test_memory_is_that_of_this_process_and_the_cpu_a_share_of_all() -> None:
    seconds = [0.0]
    found = reader(seconds)
    assert found.read("cpu") == {}  # too soon after the start
    seconds[0] = 1.0
    values = found.read("cpu")
    resident = psutil.Process(os.getpid()).memory_info().rss / 2**30
    assert values["memory_gib"] == pytest.approx(resident, rel=0.2)
    assert 0 <= values["cpu_share"] <= 1.5
    assert set(values) == {"memory_gib", "cpu_share"} <= set(METRICS)
    seconds[0] = 1.9
    assert found.read("cpu") == {}


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("cuda", {"gpu_share": 0.25, "gpu_memory_gib": 1.0}),
        ("cuda:0", {"gpu_share": 0.25, "gpu_memory_gib": 1.0}),
        ("cuda:1", {"gpu_memory_gib": 2.0}),  # it reports no utilization
        ("cuda:2", {"gpu_share": 0.5}),  # it has no memory of its own
        ("cuda:3", {}),
        ("cpu", {}),
        (None, {}),
    ],
)
def test_a_gpu_is_that_of_the_run(
    device: str | None, gpu: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "gpus", lambda: GPUS)
    seconds = [0.0]
    found = reader(seconds)
    seconds[0] = 1.0
    values = found.read(device)
    assert {name: value for name, value in values.items() if name.startswith("gpu")} == gpu
