"""What a run would take on this server: whether it fits, and how long it would train."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import psutil
from sqlalchemy.orm import Session

from backend import repository
from backend.devices import gpus
from backend.slots import Places
from sae_engine.estimate import estimate
from sae_engine.schema.config import RunConfig
from sae_engine.schema.machine import Forecast

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


def forecast(session: Session, config: RunConfig, places: Places, folder: Path) -> Forecast:
    """What a run would take in the first slot that it may use; raises `ConfigError` for a device
    that is not there.
    """
    device = places.require(config.model.device)[0].device
    room = room_on(device, folder)
    found = estimate(config, gpu=device != "cpu")
    measured = repository.measured_speed(session, device, config)
    seconds = found.tokens / measured.tokens_per_second if measured and found.tokens else None
    seconds_from = None
    if seconds is not None and measured is not None:
        same = "" if measured.same_size else ", whose SAE is another"
        speed = f"{measured.tokens_per_second:,.0f} tokens/s"
        seconds_from = f"{speed} of '{measured.run_name}' on {device}{same}"
    return Forecast(
        **found.model_dump(),
        slot_device=device,
        memory_free_bytes=room.memory_free,
        memory_total_bytes=room.memory_total,
        disk_free_bytes=room.disk_free,
        seconds=seconds,
        seconds_from=seconds_from,
        warnings=warnings(found.memory_bytes, found.disk_bytes, room),
    )


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
