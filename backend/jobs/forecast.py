"""Forecasts of the memory, disk and time that a run or sweep would need on this server."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.orm import Session

from backend import store
from backend.jobs.devices import gpus
from backend.jobs.machine import memory
from backend.jobs.slots import Places, Slot
from sae_engine.estimate import estimate_together
from sae_engine.schema.config import RunConfig, by_pass
from sae_engine.schema.machine import Estimate, Forecast

GIB = 2**30


class Room(NamedTuple):
    """Free memory of a device and free disk space, in bytes."""

    device: str
    memory_free: int
    memory_total: int
    disk_free: int


def room_on(slot: Slot, folder: Path) -> Room:
    """What is free now; `folder` holds the runs."""
    device = slot.id if slot.node else slot.device
    total, free = slot.memory or memory()
    for gpu in gpus():
        used, own = gpu.memory_used_bytes, gpu.memory_total_bytes
        if gpu.id == device and used is not None and own is not None:  # else it uses the machine's
            free, total = own - used, own
    return Room(device, free, total, shutil.disk_usage(folder).free)


def forecast(
    session: Session, configs: Sequence[RunConfig], places: Places, folder: Path
) -> Forecast:
    """What a run, or a sweep, would need in the first slots that it may use.

    Raises `ConfigError` for a device that is not available.
    """
    passes = [_pass(session, together, places) for together in by_pass(configs)]
    largest = max(passes, key=lambda one: one.estimate.memory_bytes)
    disk = sum(one.estimate.disk_bytes for one in passes)
    times = [one.time for one in passes]
    found = largest.estimate.model_copy(update={"disk_bytes": disk})
    room = room_on(largest.slot, folder)
    return Forecast(
        **found.model_dump(),
        num_runs=len(configs),
        num_passes=len(passes),
        slot_device=room.device,
        memory_free_bytes=room.memory_free,
        memory_total_bytes=room.memory_total,
        disk_free_bytes=room.disk_free,
        seconds=None if None in times else sum(time.seconds for time in times if time),
        seconds_from=None if None in times or times[0] is None else times[0].measured_on,
        warnings=warnings(found.memory_bytes, disk, room),
    )


class _Time(NamedTuple):
    """How long a pass would train, and the measurement that this is based on."""

    seconds: float
    measured_on: str


class _Pass(NamedTuple):
    """What runs on one pass of the language model would need."""

    slot: Slot
    estimate: Estimate
    time: _Time | None


def _pass(session: Session, configs: Sequence[RunConfig], places: Places) -> _Pass:
    slot = places.require(configs[0].model.device)[0]
    device = slot.device
    found = estimate_together(configs, gpu=device != "cpu")
    measured = store.measured_speed(session, device, configs[0])
    if measured is None or not found.tokens:
        return _Pass(slot, found, None)
    # Runs share the language model's part of the time; each further run adds its SAE's part.
    alone = found.tokens / measured.tokens_per_second
    seconds = alone * (1 + (len(configs) - 1) * measured.sae_share)
    other = "" if measured.same_size else " with a different SAE"
    speed = f"{measured.tokens_per_second:,.0f} tokens/s"
    measured_on = f"{speed}, measured by '{measured.run_name}' on {device}{other}"
    return _Pass(slot, found, _Time(seconds, measured_on))


def warnings(memory: int, disk: int, room: Room) -> list[str]:
    """One sentence for each need, in bytes, that does not fit."""
    found: list[str] = []
    name = "this machine" if room.device == "cpu" else room.device
    if memory > room.memory_total:
        found.append(
            f"This needs {memory / GIB:.1f} GiB of memory, but {name} has "
            f"{room.memory_total / GIB:.1f}; choose a smaller model, fewer latents or a smaller "
            "batch."
        )
    elif memory > room.memory_free:
        found.append(
            f"This needs {memory / GIB:.1f} GiB of memory, but {name} has only "
            f"{room.memory_free / GIB:.1f} GiB free now."
        )
    if disk > room.disk_free:
        found.append(
            f"This needs up to {disk / GIB:.1f} GiB of disk space, but only "
            f"{room.disk_free / GIB:.1f} GiB are free; save or index less often, or free some "
            "space."
        )
    return found
