"""What a run or a sweep would take on this server: whether it fits, and how long it would train."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from sqlalchemy.orm import Session

from backend import store
from backend.jobs.devices import gpus
from backend.jobs.slots import Places
from sae_engine.estimate import estimate_together
from sae_engine.schema.config import RunConfig, by_pass
from sae_engine.schema.machine import Estimate, Forecast

GIB = 2**30


class Room(NamedTuple):
    """What is free on a device, and of the disk."""

    device: str
    memory_free: int
    memory_total: int
    disk_free: int


def room_on(device: str, folder: Path) -> Room:
    """What is free now; `folder` is where runs are kept."""
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    for gpu in gpus():
        if gpu.id == device:
            free, total = gpu.memory_total_bytes - gpu.memory_used_bytes, gpu.memory_total_bytes
    return Room(device, free, total, shutil.disk_usage(folder).free)


def forecast(
    session: Session, configs: Sequence[RunConfig], places: Places, folder: Path
) -> Forecast:
    """What a run, or the runs of a sweep, would take in the first slots that they may use; raises
    `ConfigError` for a device that is not there.
    """
    passes = [_pass(session, together, places) for together in by_pass(configs)]
    most = max(passes, key=lambda one: one.estimate.memory_bytes)
    disk = sum(one.estimate.disk_bytes for one in passes)
    times = [one.time for one in passes]
    found = most.estimate.model_copy(update={"disk_bytes": disk})
    room = room_on(most.device, folder)
    return Forecast(
        **found.model_dump(),
        num_runs=len(configs),
        num_passes=len(passes),
        slot_device=most.device,
        memory_free_bytes=room.memory_free,
        memory_total_bytes=room.memory_total,
        disk_free_bytes=room.disk_free,
        seconds=None if None in times else sum(time.seconds for time in times if time),
        seconds_from=None if None in times or times[0] is None else times[0].told_from,
        warnings=warnings(found.memory_bytes, disk, room),
    )


class _Time(NamedTuple):
    """How long a pass would train, and what that is told from."""

    seconds: float
    told_from: str


class _Pass(NamedTuple):
    """What runs on one pass of the language model would take."""

    device: str
    estimate: Estimate
    time: _Time | None


def _pass(session: Session, configs: Sequence[RunConfig], places: Places) -> _Pass:
    device = places.require(configs[0].model.device)[0].device
    found = estimate_together(configs, gpu=device != "cpu")
    measured = store.measured_speed(session, device, configs[0])
    if measured is None or not found.tokens:
        return _Pass(device, found, None)
    # The language model's part is shared; every further run adds its own.
    alone = found.tokens / measured.tokens_per_second
    seconds = alone * (1 + (len(configs) - 1) * measured.sae_share)
    same = "" if measured.same_size else ", whose SAE is another"
    speed = f"{measured.tokens_per_second:,.0f} tokens/s"
    told_from = f"{speed} of '{measured.run_name}' on {device}{same}"
    return _Pass(device, found, _Time(seconds, told_from))


def warnings(memory: int, disk: int, room: Room) -> list[str]:
    """What of a need in bytes does not fit, a sentence each."""
    said: list[str] = []
    name = "this machine" if room.device == "cpu" else room.device
    if memory > room.memory_total:
        said.append(
            f"It takes {memory / GIB:.1f} GiB of memory and {name} has "
            f"{room.memory_total / GIB:.1f}; choose a smaller model, fewer latents or a smaller "
            "batch."
        )
    elif memory > room.memory_free:
        said.append(
            f"It takes {memory / GIB:.1f} GiB of memory and {room.memory_free / GIB:.1f} GiB of "
            f"{name} are free now."
        )
    if disk > room.disk_free:
        said.append(
            f"It takes up to {disk / GIB:.1f} GiB of disk and {room.disk_free / GIB:.1f} GiB are "
            "free; save or index less often, or make room."
        )
    return said
