"""Slots: places where one process at a time can train, and which runs may use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, cast

import psutil

from backend.errors import UnavailableError
from backend.jobs.devices import gpus, visible_gpus
from backend.jobs.machine import Memory, num_cpus
from backend.settings import Settings
from backend.store.models import RunRow
from sae_engine.errors import ConfigError

ALL_GPUS = "cuda"
"""The slot of a run that spreads a language model over all GPUs of a machine, or reads on them."""
NODE_END = "/"
"""Ends the node's name in the id of a slot on another machine."""
SHOWN_NAMES = 3


class Slot(NamedTuple):
    """A place for one process."""

    id: str
    device: str
    environment: Mapping[str, str]
    """Variables that make this device the only visible one."""
    node: str = ""
    """Name of the machine in a cluster; empty for this machine."""
    memory: Memory | None = None
    """Of the device, if it is on another machine and reports it."""
    kind: str = ""
    """Name of the GPU; empty for a CPU, or if unknown."""


class FailedStarts(NamedTuple):
    """Of jobs on one machine, since the last one that began there."""

    number: int
    why: str
    """Of the latest."""


def node_of(slot_id: str | None) -> str:
    """Name of the machine that a slot is on; empty for this machine."""
    return (slot_id or "").rpartition(NODE_END)[0]


def slot_on(node: str, name: str) -> str:
    """Id of a node's slot."""
    return f"{node}{NODE_END}{name}" if node else name


def find_slots(settings: Settings) -> list[Slot]:
    """The slots named by the settings; by default one for each GPU and one for the CPU."""
    visible = visible_gpus()
    devices = settings.devices or [*(f"cuda:{number}" for number in range(len(visible))), "cpu"]
    kinds = {gpu.id: gpu.name for gpu in gpus()}
    return [
        Slot(
            name,
            device,
            _environment(device, visible, devices.count(device)),
            kind=kinds.get(device, ""),
        )
        for name, device in distinct(devices)
    ]


def distinct(devices: Sequence[str]) -> list[tuple[str, str]]:
    """Devices of one machine with a name for each, such as `cpu` and `cpu#2`."""
    counts = Counter[str]()
    named: list[tuple[str, str]] = []
    for device in devices:
        counts[device] += 1
        number = counts[device]
        named.append((device if number == 1 else f"{device}#{number}", device))
    return named


def _environment(device: str, gpus: Sequence[str], num_slots: int) -> dict[str, str]:
    """Variables for a process in one of the `num_slots` slots of a device."""
    if device == "cpu":
        environment = {"CUDA_VISIBLE_DEVICES": ""}
        if num_slots > 1:
            cores = min(psutil.cpu_count(logical=False) or 1, num_cpus())
            threads = max(1, cores // num_slots)
            environment |= {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        return environment
    number = int(device.removeprefix("cuda:"))
    name = gpus[number] if number < len(gpus) else str(number)
    return {"CUDA_VISIBLE_DEVICES": name, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class Places:
    """The slots and the active runs that occupy them."""

    def __init__(
        self,
        slots: Sequence[Slot],
        active: Collection[RunRow],
        held: Collection[str] = (),
        pause: str | None = None,
        problem: str | None = None,
        failures: Mapping[str, FailedStarts] | None = None,
    ) -> None:
        """`held` are ids of slots whose process has not exited yet; `pause` is why the next start
        waits, `problem` why there is no start in any slot. Machines with fewer of the `failures`,
        by name, come first.
        """
        self.slots = slots
        self._failures = failures or {}
        self.problem = problem
        self._pause = pause
        self._held = held
        self._has_gpu = any(slot.device != "cpu" for slot in slots)
        self._taken: dict[str, list[RunRow]] = {slot.id: [] for slot in slots}
        for row in active:
            for slot_id in self._slots_of(row):
                self._taken[slot_id].append(row)

    def _slots_of(self, row: RunRow) -> list[str]:
        if row.slot is not None:
            return [slot.id for slot in self.slots if row.slot in (slot.id, _all_gpus_with(slot))]
        # A run in a terminal takes a slot of its device, or the first until its device is known.
        here = [slot for slot in self.slots if not slot.node]
        kind = (row.device or here[0].device).split(":")[0] if here else ""
        return [slot.id for slot in here if slot.device.split(":")[0] == kind][:1]

    def runs_in(self, slot: Slot) -> Sequence[RunRow]:
        return self._taken[slot.id]

    def free(self) -> list[Slot]:
        return [slot for slot in self.slots if not self._is_taken(slot)]

    def _is_taken(self, slot: Slot) -> bool:
        held = slot.id in self._held or _all_gpus_with(slot) in self._held
        return held or bool(self._taken[slot.id])

    def problem_of(self, slot: Slot) -> str | None:
        """Why the last job that was started on a cluster's machine did not begin, as a sentence."""
        failed = self._failures.get(slot.node) if slot.node else None
        return f"{failed.why}." if failed else None

    @property
    def devices(self) -> str:
        """The devices of all slots, as text."""
        return ", ".join(dict.fromkeys(slot.device for slot in self.slots))

    def usable(self, device: str) -> list[Slot]:
        """Slots that match a `model.device`; `auto` means a GPU where there is one."""
        if device == "auto":
            device = "cuda" if self._has_gpu else "cpu"
        if device == "cuda":
            return [slot for slot in self.slots if slot.device != "cpu"]
        return [slot for slot in self.slots if slot.device == device]

    def require(self, device: str) -> list[Slot]:
        """The same; raises `ConfigError` if there are none, `UnavailableError` if none is known."""
        usable = self.usable(device)
        if not usable and self.problem is not None:
            raise UnavailableError(self.problem, kind="no-machines")
        if not usable:
            raise ConfigError.of(
                "model.device",
                f"'{device}' is not available; this server trains on {self.devices}.",
            )
        return usable

    def spreads(self, row: RunRow) -> bool:
        """Whether a run needs all GPUs of a machine at once."""
        model = _model_settings(row)
        is_shared = model.get("device_map") is not None or model.get("readers") not in (None, 1)
        return self._has_gpu and is_shared and _device(row) != "cpu"

    def place_for(self, row: RunRow) -> Slot | None:
        """The free slot in which a run could start now."""
        usable = self.usable(_device(row))
        free = [slot for slot in self.free() if slot in usable]
        free.sort(key=lambda slot: self._reluctance(slot, row))
        if self.spreads(row):
            return self._whole_machine(usable, free)
        return free[0] if free else None

    def _reluctance(self, slot: Slot, row: RunRow) -> tuple[int, bool]:
        """Slots with less of it come first: machines where starts work, then the kind of device
        that the run trained on before.
        """
        failed = self._failures.get(slot.node)
        return failed.number if failed else 0, slot.kind != (row.device_kind or slot.kind)

    def _whole_machine(self, usable: Sequence[Slot], free: Sequence[Slot]) -> Slot | None:
        """All GPUs of the first machine on which all are free."""
        for node in dict.fromkeys(slot.node for slot in free):
            slots = [slot for slot in usable if slot.node == node]
            if all(slot in free for slot in slots):
                return _together(slots)
        return None

    def next_of(self, queue: Sequence[RunRow]) -> tuple[RunRow, Slot] | None:
        """The first run of the queue that can start now, and its slot.

        A run that waits for all GPUs keeps later runs off them, or it might wait forever.
        """
        gpus_are_reserved = False
        for row in queue:
            slot = self.place_for(row)
            if slot is not None and (slot.device == "cpu" or not gpus_are_reserved):
                return row, slot
            gpus_are_reserved = gpus_are_reserved or (slot is None and self.spreads(row))
        return None

    def why_waiting(self, row: RunRow) -> str:
        """Why a queued run has not started, as one sentence."""
        if self.problem is not None:
            return self.problem
        device = _device(row)
        usable = self.usable(device)
        if not usable:
            return f"Waiting for {device}, but this server trains on {self.devices}."
        if self.place_for(row) is not None:
            return self._pause or "About to start."
        taken = [slot for slot in usable if self._is_taken(slot)]
        where = " and ".join("the CPU" if slot.id == "cpu" else slot.id for slot in taken)
        names = [f"'{n}'" for n in dict.fromkeys(r.name for s in taken for r in self._taken[s.id])]
        if not names:
            return f"Waiting for {where}; the previous run is finishing."
        more = len(names) - SHOWN_NAMES
        users = ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
        return f"Waiting for {where}, in use by {users}."


def _device(row: RunRow) -> str:
    return str(_model_settings(row).get("device", "auto"))


def _model_settings(row: RunRow) -> Mapping[str, Any]:
    """A run's stored `model` section, not validated: the whole queue is read at every poll."""
    stored: Any = row.config
    section: Any = cast(dict[str, Any], stored).get("model") if isinstance(stored, dict) else None
    return cast(dict[str, Any], section) if isinstance(section, dict) else {}


def _together(slots: Sequence[Slot]) -> Slot:
    """One slot that shows its process the devices of several of one machine."""
    names = ",".join(slot.environment.get("CUDA_VISIBLE_DEVICES", "") for slot in slots)
    environment = dict(slots[0].environment) | {"CUDA_VISIBLE_DEVICES": names}
    node = slots[0].node
    return Slot(slot_on(node, ALL_GPUS), ALL_GPUS, environment, node, kind=slots[0].kind)


def _all_gpus_with(slot: Slot) -> str | None:
    """Id of the slot that has all GPUs of a GPU's machine."""
    return None if slot.device == "cpu" else slot_on(slot.node, ALL_GPUS)


def environment_of(slot: Slot, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process in a slot; numbers of threads set in `base` win."""
    kept = {name: base[name] for name in slot.environment if name in base and "THREADS" in name}
    return {**base, **slot.environment, **kept}
