"""Runs jobs on the machines of a Ray cluster. Used by the supervisor as its `Executor`.

Ray starts a job's process on the node that we choose and reports its state. Its reports are not
conclusive: it calls a working job failed if the node's agent is gone. So a job has certainly ended
only if Ray saw its process end; otherwise its reports to the database decide. Jobs on this machine,
started before the cluster was set up or in a terminal, remain with the local executor.
"""

from __future__ import annotations

import logging
import shlex
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from backend.jobs.executor import (
    FOREIGN_SILENCE,
    Alive,
    Ended,
    Executor,
    Job,
    JobCommand,
    JobState,
    NotStartedError,
    Unknown,
)
from backend.jobs.machine import Memory
from backend.jobs.ray_api import ClusterError, JobInfo, Node, NodeGpu, RayApi, Submission
from backend.jobs.shared_folder import claim_folder
from backend.jobs.slots import ALL_GPUS, Slot, distinct, node_of, slot_on
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.errors import UserError
from sae_engine.schema.machine import Device

NODES_SECONDS = 5.0
"""How often the nodes are listed."""
LOOK_SECONDS = 2.0
"""How long the state of a job is remembered."""
LOST_SILENCE = timedelta(seconds=60)
"""A run whose job Ray has lost is given up after reporting nothing for this long."""
MIB = 2**20

_log = logging.getLogger(__name__)


class RayExecutor:
    """Runs jobs on the nodes of a cluster."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        command: JobCommand,
        api: RayApi,
        local: Executor,
    ) -> None:
        self._settings = settings
        self._database = database
        self._command = command
        self._api = api
        self._local = local
        self._nodes: Sequence[Node] = ()
        self._slots: Sequence[Slot] = ()
        self._has_folder = False
        self._problem: str | None = "The Ray cluster has not answered yet."
        self._next_refresh = 0.0
        self._seen: dict[str, tuple[JobState, float]] = {}
        """The state of each job, and when (`time.monotonic`) Ray was asked for it."""

    @property
    def problem(self) -> str | None:
        return self._problem

    def refresh(self) -> None:
        if time.monotonic() < self._next_refresh:
            return
        try:
            if not self._has_folder:
                claim_folder(self._database, self._settings.data_dir)
                self._has_folder = True
            self._nodes = self._api.nodes()
            self._slots = [s for node in self._nodes for s in slots_of(node, self._settings)]
            problem = None if self._slots else "No machine of the Ray cluster offers a GPU or CPUs."
        except UserError as error:
            problem = str(error)
        if problem is not None and problem != self._problem:  # once, not at every attempt
            _log.warning("%s", problem)
        self._problem = problem
        self._next_refresh = time.monotonic() + NODES_SECONDS

    def slots(self) -> Sequence[Slot]:
        return self._slots

    def held(self) -> Collection[str]:
        return self._local.held()

    def devices(self) -> Sequence[Device]:
        return [device for node in self._nodes for device in _devices_of(node)]

    def start(self, job: str, slot: Slot, run_ids: Sequence[str]) -> None:
        node = next((node for node in self._nodes if node.name == slot.node), None)
        if node is None:
            raise NotStartedError(f"The machine {slot.node} is gone", may_pass=True)
        submission = Submission(
            job=job,
            entrypoint=_entrypoint(self._command(job), slot),
            node_id=node.raylet.node_id,
            num_gpus=self._num_gpus(slot, node),
        )
        try:
            self._api.submit(submission)
        except ClusterError as error:
            raise NotStartedError(str(error).rstrip("."), may_pass=True) from None
        self._seen[job] = Alive(), time.monotonic()

    def _num_gpus(self, slot: Slot, node: Node) -> float:
        if slot.device == "cpu":
            return 0
        if slot.device == ALL_GPUS:
            return node.amount("GPU")
        shared_by = sum((s.node, s.device) == (slot.node, slot.device) for s in self._slots)
        return 1 / max(1, shared_by)

    def look(self, jobs: Collection[Job]) -> Mapping[str, JobState]:
        here = [job for job in jobs if not node_of(job.slot)]
        states = dict(self._local.look(here))
        for job in jobs:
            if job.name not in states:
                states[job.name] = self._state(job)
        self._seen = {name: seen for name, seen in self._seen.items() if name in states}
        return states

    def _state(self, job: Job) -> JobState:
        state, asked = self._seen.get(job.name, (None, 0.0))
        if state is None or time.monotonic() >= asked + LOOK_SECONDS:
            state = self._ask(job)
            self._seen[job.name] = state, time.monotonic()
        return state

    def _ask(self, job: Job) -> JobState:
        if self._problem is not None:  # else every job would wait for an answer
            return Unknown(FOREIGN_SILENCE)
        try:
            info = self._api.job(job.name)
        except ClusterError:
            self._next_refresh = 0.0
            return Unknown(FOREIGN_SILENCE)
        if info is not None and info.status == "PENDING" and not self._is_alive(node_of(job.slot)):
            return Unknown(LOST_SILENCE)  # Ray would wait for its node
        return _state_of(info)

    def _is_alive(self, node: str) -> bool:
        return any(each.name == node for each in self._nodes)

    def end(self, job: Job, number: signal.Signals) -> None:
        """Ask Ray to stop a job; Ray kills a job that does not end."""
        if not node_of(job.slot):
            self._local.end(job, number)
            return
        try:
            self._api.stop(job.name)
        except ClusterError as error:
            _log.warning("job %s could not be ended: %s", job.name, error)

    def close(self) -> None:
        self._api.close()
        self._local.close()


def slots_of(node: Node, settings: Settings) -> list[Slot]:
    """The slots of a node: one for each GPU and one for its CPUs, or those of its devices that the
    settings name.
    """
    gpus = [f"cuda:{number}" for number in range(node.amount("GPU"))]
    cpus = ["cpu"] if node.amount("CPU") else []
    wanted = [d for d in settings.devices or [*gpus, *cpus] if d in (*gpus, *cpus)]
    return [
        Slot(
            slot_on(node.name, name),
            device,
            _variables(node, wanted.count(device)) if device == "cpu" else {},
            node.name,
            _memory_of(node, device),
            next((gpu.name for gpu in node.gpus if device == f"cuda:{gpu.index}"), ""),
        )
        for name, device in distinct(wanted)
    ]


def _variables(node: Node, num_slots: int) -> dict[str, str]:
    """Variables of a process on a node's CPUs."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    if num_slots == 1:
        return hidden
    threads = str(max(1, node.amount("CPU") // num_slots))
    return {**hidden, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}


def _memory_of(node: Node, device: str) -> Memory | None:
    """The memory of a node's device; None if the node does not report it."""
    for gpu in node.gpus:
        if device == f"cuda:{gpu.index}":
            return Memory(_bytes(gpu.memory_total), _bytes(gpu.memory_total - gpu.memory_used))
    if device == "cpu" and len(node.mem) >= 2:
        return Memory(int(node.mem[0]), int(node.mem[1]))
    return None


def _devices_of(node: Node) -> list[Device]:
    return [_device(node, gpu) for gpu in node.gpus]


def _device(node: Node, gpu: NodeGpu) -> Device:
    return Device(
        id=slot_on(node.name, f"cuda:{gpu.index}"),
        name=gpu.name,
        utilization=None if gpu.utilization_gpu is None else gpu.utilization_gpu / 100,
        memory_used_bytes=_bytes(gpu.memory_used),
        memory_total_bytes=_bytes(gpu.memory_total),
        temperature_celsius=None,
    )


def _bytes(mebibytes: float) -> int:
    return int(mebibytes * MIB)


def _entrypoint(command: Sequence[str], slot: Slot) -> str:
    """A shell command that becomes the job's process, with the Python of the node.

    Ray limits every job to one thread unless the node's administrator set another number.
    """
    variables = "".join(f"{name}={shlex.quote(v)} " for name, v in slot.environment.items())
    process = shlex.join(["python", *command[1:], slot.node])
    return f'[ "$OMP_NUM_THREADS" != 1 ] || unset OMP_NUM_THREADS; {variables}exec {process}'


def _state_of(info: JobInfo | None) -> JobState:
    if info is None:  # its head node was replaced
        return Unknown(LOST_SILENCE)
    if info.status in ("PENDING", "RUNNING"):
        return Alive()
    if info.status == "SUCCEEDED":
        return Ended(0)
    if info.status == "STOPPED":
        return Ended()
    if info.driver_exit_code is None:
        return Unknown(LOST_SILENCE)
    code = info.driver_exit_code
    last_line = (info.message or "").strip().rpartition("\n")[2]
    return Ended(code if code <= 128 else 128 - code, last_line)
