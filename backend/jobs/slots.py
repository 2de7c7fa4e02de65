"""Where runs can be trained: one process at a time in each slot, and who may use which."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import psutil

from backend.jobs.devices import visible_gpus
from backend.settings import Settings
from backend.store.models import RunRow
from sae_engine.errors import ConfigError

ALL_GPUS = "cuda"
"""The slot of a run that spreads a language model over all GPUs."""


class Slot(NamedTuple):
    """A place for one process."""

    id: str
    device: str
    environment: Mapping[str, str]
    """What shows its process this device and no other."""


def find_slots(settings: Settings) -> list[Slot]:
    """Those that the settings name, else one for each GPU and one for the processor."""
    gpus = visible_gpus()
    devices = settings.devices or [*(f"cuda:{number}" for number in range(len(gpus))), "cpu"]
    slots: list[Slot] = []
    for device in devices:
        number = 1 + sum(slot.device == device for slot in slots)
        name = device if number == 1 else f"{device}#{number}"
        share = devices.count(device)
        slots.append(Slot(name, device, _environment(device, gpus, share)))
    return slots


def _environment(device: str, gpus: Sequence[str], share: int) -> dict[str, str]:
    if device == "cpu":
        environment = {"CUDA_VISIBLE_DEVICES": ""}
        if share > 1:
            threads = max(1, (psutil.cpu_count(logical=False) or 1) // share)
            environment |= {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        return environment
    number = int(device.removeprefix("cuda:"))
    name = gpus[number] if number < len(gpus) else str(number)
    return {"CUDA_VISIBLE_DEVICES": name, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class Places:
    """The slots, and which of them are taken by runs that are being worked on."""

    def __init__(
        self, slots: Sequence[Slot], active: Collection[RunRow], held: Collection[str] = ()
    ) -> None:
        """`held` are slots that a process has not left yet."""
        self.slots = slots
        self._held = held
        self._has_gpu = any(slot.device != "cpu" for slot in slots)
        self._taken: dict[str, list[RunRow]] = {slot.id: [] for slot in slots}
        for row in active:
            for slot_id in self._slots_of(row):
                self._taken[slot_id].append(row)

    def _slots_of(self, row: RunRow) -> list[str]:
        if row.slot == ALL_GPUS:
            return [slot.id for slot in self.slots if slot.device != "cpu"]
        if row.slot is not None:
            return [row.slot] if row.slot in self._taken else []
        # in somebody's terminal: it takes a slot of its device, the first while that is unknown
        device = row.device or self.slots[0].device
        free = [s.id for s in self.slots if s.device.split(":")[0] == device.split(":")[0]]
        return free[:1]

    def runs_in(self, slot: Slot) -> Sequence[RunRow]:
        return self._taken[slot.id]

    def free(self) -> list[Slot]:
        return [slot for slot in self.slots if not self._is_taken(slot)]

    def _is_taken(self, slot: Slot) -> bool:
        held = slot.id in self._held or (ALL_GPUS in self._held and slot.device != "cpu")
        return held or bool(self._taken[slot.id])

    @property
    def devices(self) -> str:
        """The devices there are, for people."""
        return ", ".join(dict.fromkeys(slot.device for slot in self.slots))

    def usable(self, device: str) -> list[Slot]:
        """The slots for what `model.device` says: `auto` is a GPU where there is one."""
        if device == "auto":
            device = "cuda" if self._has_gpu else "cpu"
        if device == "cuda":
            return [slot for slot in self.slots if slot.device != "cpu"]
        return [slot for slot in self.slots if slot.device == device]

    def require(self, device: str) -> list[Slot]:
        """The same, at least one; raises `ConfigError` where there is none."""
        usable = self.usable(device)
        if not usable:
            raise ConfigError.of(
                "model.device", f"'{device}' is not there; this server trains on {self.devices}."
            )
        return usable

    def spreads(self, row: RunRow) -> bool:
        """Whether a run wants all GPUs at once."""
        return self._has_gpu and row.config["model"].get("device_map") is not None

    def place_for(self, row: RunRow) -> Slot | None:
        """The free slot that a run would be started in now."""
        usable = self.usable(_wanted(row))
        free = [slot for slot in self.free() if slot in usable]
        if self.spreads(row):
            return _together(free) if len(free) == len(usable) else None
        return free[0] if free else None

    def next_of(self, queue: Sequence[RunRow]) -> tuple[RunRow, Slot] | None:
        """The first run of the queue that can be started now, and where. One that wants all GPUs
        holds those behind it back from them, or its turn would never come.
        """
        gpus_are_held = False
        for row in queue:
            slot = self.place_for(row)
            if slot is not None and (slot.device == "cpu" or not gpus_are_held):
                return row, slot
            gpus_are_held = gpus_are_held or (slot is None and self.spreads(row))
        return None

    def why_waiting(self, row: RunRow) -> str:
        """Why a run that is queued has not been started, in words."""
        usable = self.usable(_wanted(row))
        if not usable:
            return f"It asks for {_wanted(row)}; this server trains on {self.devices}."
        if self.place_for(row) is not None:
            return "It is about to start."
        taken = [slot for slot in usable if self._is_taken(slot)]
        where = " and ".join(slot.id for slot in taken)
        names = dict.fromkeys(run.name for slot in taken for run in self._taken[slot.id])
        if not names:
            return f"It waits for {where}, which the last run is about to leave."
        shown = ", ".join(f"'{name}'" for name in list(names)[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"It waits for {where}, taken by {shown}{more}."


def _wanted(row: RunRow) -> str:
    return row.config["model"]["device"]


def _together(slots: Sequence[Slot]) -> Slot:
    names = ",".join(slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots)
    environment = dict(slots[0].environment) | {"CUDA_VISIBLE_DEVICES": names}
    return Slot(ALL_GPUS, ALL_GPUS, environment)


def environment_of(slot: Slot, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process in a slot; what the person set about threads stays."""
    kept = {name: base[name] for name in slot.environment if name in base and "THREADS" in name}
    return {**base, **slot.environment, **kept}
