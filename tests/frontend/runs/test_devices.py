"""What the machine is doing: meters of its GPUs, CPUs, memory and disk."""

from __future__ import annotations

import re

import pytest

from frontend.runs.devices import device_panel
from frontend.views.system import devices_table
from sae_engine.schema.machine import Device, Slot, System
from tests.frontend.samples import make_run

GIB = 2**30


@pytest.fixture
def system() -> System:
    """A machine with a hot GPU of hostile name and almost no free memory."""
    gpu = Device(
        id="cuda:0",
        name="Fake <GPU>",
        utilization=0.75,
        memory_used_bytes=20 * GIB,
        memory_total_bytes=80 * GIB,
        temperature_celsius=91.0,
    )
    return System(
        version="0.1.0",
        supervises=True,
        problem=None,
        devices=[gpu],
        slots=[],
        num_cpus=4,
        cpu_utilization=0.5,
        memory_used_bytes=15 * GIB,
        memory_total_bytes=16 * GIB,
        disk_free_bytes=50 * GIB,
        disk_total_bytes=100 * GIB,
        queue={},
    )


def test_meters_are_red_where_a_device_is_hot_or_full(system: System) -> None:
    panel = device_panel(system)
    assert "Fake &lt;GPU&gt;" in panel
    assert '<div class="wb-meter bad"><span>Temperature</span><span>91 °C</span>' in panel
    assert '<div class="wb-meter bad"><span>Memory</span><span>15 GiB of 16 GiB</span>' in panel
    assert '<div class="wb-meter "><span>4 CPUs</span><span>50%</span>' in panel
    assert '<div class="wb-meter "><span>Disk</span><span>50 GiB free</span>' in panel


def test_a_run_on_the_cpu_shows_no_gpu(system: System) -> None:
    assert "GPU" not in device_panel(system, device="cpu")
    assert "GPU" in device_panel(system, device="cuda")


def test_a_run_on_a_machine_that_left_the_cluster_stands_beside_its_name(system: System) -> None:
    slot = Slot(id="b/cpu", device="cpu", runs=["second"])
    broken = Slot(id="c/cpu", device="cpu", runs=[], problem="No <disk>.")
    devices = {"first": "a/cpu", "second": "b/cpu", "third": "a/cpu", "fourth": None}
    runs = {name: make_run(id=name, name=name, device=at) for name, at in devices.items()}
    found = devices_table(system.model_copy(update={"slots": [slot, broken]}), runs)
    rows = re.findall(r"<tr><td>(?:<strong>)?([^<]+)(.*?)</tr>", found)
    placed = {where: re.findall(r"run\?id=(\w+)", works) for where, works in rows}
    assert "<small>The last start failed: No &lt;disk&gt;.</small>" in dict(rows)["c/cpu"]
    assert placed == {
        "b/cpu": ["second"],
        "c/cpu": [],
        "a/cpu": ["first", "third"],
        "other": ["fourth"],
    }
